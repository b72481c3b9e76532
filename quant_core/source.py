"""Models ready to be read: found in their files, checked, and told what becomes of each weight."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from .assembly import Assembly
from .checkpoint import Checkpoint
from .clip_l import ClipLConfig, read_clip_l_config
from .config import QuantConfig
from .flux.config import FluxConfig, read_flux_config
from .flux.names import diffusers_parts
from .flux.tensors import fused_tensors, native_tensors
from .identify import CLIP_L, FLUX, FLUX_DIFFUSERS, T5, find
from .recipe import agreed
from .shapes import require_shapes
from .skip import is_skipped, unmatched
from .stored import read_contents
from .t5 import T5Config, encoder_tensors, read_t5_config

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A checked checkpoint: everything is known from the header, nothing is loaded.

    Attributes:
        checkpoint: the file or files.
        model: its sizes.
        tensors: tensor of the model -> what it is made of.
        packed: weight tensors that are still to be quantized.
        config: the recipe, the model's own where it comes packed.
    """

    checkpoint: Checkpoint
    model: FluxConfig | T5Config | ClipLConfig
    tensors: Mapping[str, Assembly]
    packed: frozenset[str]
    config: QuantConfig

    @property
    def is_packed(self) -> bool:
        """Whether the model comes packed, wholly or in part."""
        return any(part.packing for tensor in self.tensors.values() for part in tensor.parts)


def flux_source(checkpoint: Checkpoint, config: QuantConfig | None = None) -> Source:
    """Check a FLUX file or folder, under native or diffusers' names, 16-bit, fp8 or packed by bitsandbytes.

    Modules on the skip list may be given by native or by diffusers names. A native module that stacks several
    diffusers modules stays at 16 bit whole if one of them is named.

    Args:
        config: how to quantize; None takes the model's own quantization, or NF4 if it has none.

    Raises:
        CheckpointError: it is no complete FLUX, or is packed otherwise than ``config`` says.
    """
    kind, prefix = find(checkpoint, FLUX, FLUX_DIFFUSERS)
    contents = read_contents(checkpoint, prefix)
    tensors = native_tensors(contents, prefix) if kind is FLUX else fused_tensors(contents)
    model = read_flux_config(checkpoint.path, tensors)
    modules = {module: (module, *diffusers_parts(module)) for module in model.linear_shapes()}
    return _source(checkpoint, model, tensors, modules, config, "FLUX")


def t5_source(checkpoint: Checkpoint, config: QuantConfig | None = None) -> Source:
    """Check a T5 file or folder, 16-bit, fp8 or packed by bitsandbytes.

    Args:
        config: as in :func:`flux_source`.

    Raises:
        CheckpointError: it is no complete T5 encoder, or is packed otherwise than ``config`` says.
    """
    _, prefix = find(checkpoint, T5)
    tensors = encoder_tensors(read_contents(checkpoint, prefix), prefix)
    model = read_t5_config(checkpoint.path, tensors)
    modules = {module: (module,) for module in model.linear_shapes()}
    return _source(checkpoint, model, tensors, modules, config, "T5")


def clip_l_source(checkpoint: Checkpoint) -> Source:
    """Check a CLIP-L file. It is small and stays as stored.

    Raises:
        CheckpointError: it is no CLIP-L.
    """
    _, prefix = find(checkpoint, CLIP_L)
    contents = read_contents(checkpoint, prefix)
    tensors = {name[len(prefix) :]: Assembly((tensor,)) for name, tensor in contents.tensors.items()}
    tensors = {name: t for name, t in tensors.items() if name.startswith(("text_model.", "text_projection"))}
    return Source(checkpoint, read_clip_l_config(checkpoint.path, tensors), tensors, frozenset(), QuantConfig("none"))


def _source(
    checkpoint: Checkpoint,
    model: FluxConfig | T5Config,
    tensors: Mapping[str, Assembly],
    modules: Mapping[str, tuple[str, ...]],
    config: QuantConfig | None,
    what: str,
) -> Source:
    shapes = model.tensor_shapes()
    require_shapes(checkpoint.path, tensors, shapes, what)
    config, quantizing = agreed(checkpoint, tensors, modules, config)
    for entry in unmatched([name for known in modules.values() for name in known], config.skip_modules):
        logger.warning("skip_modules: %r matches no module of %s.", entry, checkpoint.name)
    packed = frozenset(
        f"{module}.weight"
        for module, known in modules.items()
        if quantizing and config.precision != "none" and not is_skipped(known, config.skip_modules)
    )
    return Source(checkpoint, model, {name: tensors[name] for name in shapes}, packed, config)
