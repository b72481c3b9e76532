"""Quantizing a checkpoint while it is read: one 16-bit layer at a time, never the whole model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from .checkpoint import Checkpoint
from .clip_l import ClipLConfig, read_clip_l_config
from .config import QuantConfig
from .flux.config import FluxConfig, read_flux_config
from .flux.names import diffusers_parts
from .identify import CLIP_L, FLUX, T5, require_kind, transformer_names
from .layouts import quantize
from .shapes import require_shapes
from .skip import is_skipped, unmatched
from .t5 import T5Config, read_t5_config, t5_names

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """A checked checkpoint, ready to be read: everything is known from the header, nothing is loaded.

    Attributes:
        checkpoint: the file.
        model: its sizes.
        names: tensor of the model -> name in the file, for the tensors that the model has.
        packed: weight tensors that ``config`` quantizes.
        config: the recipe.
    """

    checkpoint: Checkpoint
    model: FluxConfig | T5Config | ClipLConfig
    names: Mapping[str, str]
    packed: frozenset[str]
    config: QuantConfig


def flux_source(checkpoint: Checkpoint, config: QuantConfig) -> Source:
    """Check a 16-bit FLUX file and say what ``config`` makes of it.

    Modules on the skip list may be given by native or by diffusers names. A native module that stacks several
    diffusers modules stays at 16 bit whole if one of them is named.

    Raises:
        CheckpointError: it is no complete FLUX file.
    """
    require_kind(checkpoint, FLUX)
    names = transformer_names(checkpoint)
    model = read_flux_config(checkpoint, names)
    modules = {module: (module, *diffusers_parts(module)) for module in model.linear_shapes()}
    return _source(checkpoint, model, names, modules, config, "FLUX")


def t5_source(checkpoint: Checkpoint, config: QuantConfig) -> Source:
    """Check a 16-bit T5 file and say what ``config`` makes of it.

    Raises:
        CheckpointError: it is no complete T5 encoder.
    """
    require_kind(checkpoint, T5)
    names = t5_names(checkpoint)
    model = read_t5_config(checkpoint, names)
    return _source(checkpoint, model, names, {module: (module,) for module in model.linear_shapes()}, config, "T5")


def clip_l_source(checkpoint: Checkpoint) -> Source:
    """Check a CLIP-L file. It is small and stays as stored.

    Raises:
        CheckpointError: it is no CLIP-L.
    """
    require_kind(checkpoint, CLIP_L)
    names = {name: name for name in checkpoint.tensors if name.startswith(("text_model.", "text_projection"))}
    return Source(checkpoint, read_clip_l_config(checkpoint), names, frozenset(), QuantConfig("none"))


def _source(
    checkpoint: Checkpoint,
    model: FluxConfig | T5Config,
    names: Mapping[str, str],
    modules: Mapping[str, tuple[str, ...]],
    config: QuantConfig,
    what: str,
) -> Source:
    shapes = model.tensor_shapes()
    require_shapes(checkpoint, names, shapes, what)
    for entry in unmatched([name for known in modules.values() for name in known], config.skip_modules):
        logger.warning("skip_modules: %r matches no module of %s.", entry, checkpoint.name)
    packed = frozenset(
        f"{module}.weight" for module, known in modules.items() if not is_skipped(known, config.skip_modules)
    )
    packed = frozenset() if config.precision == "none" else packed
    return Source(checkpoint, model, {name: names[name] for name in shapes}, packed, config)


@torch.no_grad()
def load(
    source: Source,
    device: torch.device | str = "cpu",
    destination: torch.device | str | None = None,
    progress: Progress | None = None,
) -> dict[str, torch.Tensor]:
    """Read the model, quantizing as it comes.

    At any moment one layer is held at 16 bit on ``device``; the file's pages are mapped, not copied. With precision
    ``none`` and the CPU as destination, weights stay mapped from the file; else nothing refers to it any more.

    Args:
        device: where weights are quantized.
        destination: where results are kept; by default ``device``.
        progress: called after each tensor with (tensors done, tensors in all); what it raises ends the loading.

    Returns:
        tensor of the model -> packed or plain tensor.

    Raises:
        CheckpointError: the file cannot be read to the end.
    """
    device = torch.device(device)
    destination = torch.device(destination or device)
    tensors: dict[str, torch.Tensor] = {}
    with source.checkpoint.reader() as file:
        for done, (name, stored_name) in enumerate(source.names.items(), start=1):
            tensor = file.get_tensor(stored_name)
            if name in source.packed:
                packed = quantize(tensor.to(device), source.config)
                if device.type == "cuda":
                    # bitsandbytes quantizes on the default stream, which a move on another would not wait for
                    torch.cuda.default_stream(device).synchronize()
                tensor = packed.to(destination)
            elif destination.type != "cpu":
                tensor = tensor.to(destination)
            elif source.packed:
                tensor = tensor.clone()
            tensors[name] = tensor
            if progress is not None:
                progress(done, len(source.names))
    return tensors
