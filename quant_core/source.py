"""Models ready to be read: found in their files, checked, and told what becomes of each weight."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from .assembly import Assembly
from .checkpoint import Checkpoint
from .clip_l import ClipLConfig, read_clip_l_config
from .config import QuantConfig
from .errors import ConfigError
from .flux.config import FluxConfig, read_flux_config
from .flux.names import diffusers_parts
from .flux.tensors import fused_tensors, native_tensors
from .identify import CLIP_L, FLUX, FLUX_DIFFUSERS, T5, find
from .mixed.choose import choose
from .recipe import agreed, most_common, recipe_of
from .shapes import require_shapes
from .skip import is_skipped, unmatched
from .stored import read_contents
from .t5 import T5Config, encoder_tensors, read_t5_config

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Source:
    """A checked checkpoint: everything is known from the header, nothing is loaded.

    Attributes:
        checkpoint: the file or files.
        model: its sizes.
        tensors: tensor of the model -> what it is made of.
        packed: weight tensor that is still to be quantized -> how.
        config: the recipe, the model's own where it comes packed; where its layers differ, that of most packed weights;
            of precision ``none`` where none is packed.
        costs: where the costs came from by which each layer got its own recipe; None if that was not asked for.
    """

    checkpoint: Checkpoint
    model: FluxConfig | T5Config | ClipLConfig
    tensors: Mapping[str, Assembly]
    packed: Mapping[str, QuantConfig]
    config: QuantConfig
    costs: str | None = None

    @property
    def is_packed(self) -> bool:
        """Whether the model comes packed, wholly or in part."""
        return any(part.packing for tensor in self.tensors.values() for part in tensor.parts)

    def recipe(self, module: str) -> QuantConfig:
        """How a linear layer's weight is packed once the model is loaded."""
        name = f"{module}.weight"
        if name in self.packed:
            return self.packed[name]
        if self.tensors[name].packing:
            return replace(recipe_of(self.tensors[name].parts[0]), int8_threshold=self.config.int8_threshold)
        return QuantConfig("none")

    @property
    def precisions(self) -> Mapping[str, int]:
        """Label of a recipe -> number of linear layers that have it once the model is loaded; most first."""
        counts = Counter(self.recipe(module).describe() for module in self.model.linear_shapes())
        return dict(counts.most_common())

    @property
    def uses_int8(self) -> bool:
        """Whether a layer will be multiplied by LLM.int8() arithmetic."""
        stored = (part.packing for tensor in self.tensors.values() for part in tensor.parts)
        return any(recipe.precision == "int8" for recipe in self.packed.values()) or "int8" in stored

    def describe(self) -> str:
        """The recipe in a few words; where layers differ in it, how many have which."""
        packed = [label for label in self.precisions if label != "16-bit"]
        if self.costs is None and len(packed) < 2:
            return self.config.describe()
        counts = ", ".join(f"{number} × {label}" for label, number in self.precisions.items())
        return counts if self.costs is None else f"{counts} (by {self.costs})"


def flux_source(
    checkpoint: Checkpoint, config: QuantConfig | None = None, progress: Progress = lambda done, total: None
) -> Source:
    """Check a FLUX file or folder, under native or diffusers' names, 16-bit, fp8 or packed by bitsandbytes.

    Modules on the skip list may be given by native or by diffusers names. A native module that stacks several
    diffusers modules stays at 16 bit whole if one of them is named.

    Args:
        config: how to quantize; None takes the model's own quantization, or NF4 if it has none. A model that this
            project saved with nothing packed stays at 16 bit.
        progress: called with (weights read, weights in all) where a budget has to be kept by looking at the weights;
            what it raises ends that.

    Raises:
        CheckpointError: it is no complete FLUX, or is packed otherwise than ``config`` says.
        ConfigError: it cannot be had within the budget of ``config``.
    """
    kind, prefix = find(checkpoint, FLUX, FLUX_DIFFUSERS)
    contents = read_contents(checkpoint, prefix)
    tensors = native_tensors(contents, prefix) if kind is FLUX else fused_tensors(contents)
    model = read_flux_config(checkpoint.path, tensors)
    modules = {module: (module, *diffusers_parts(module)) for module in model.linear_shapes()}
    return _source(checkpoint, model, tensors, modules, config, "FLUX", progress)


def t5_source(checkpoint: Checkpoint, config: QuantConfig | None = None) -> Source:
    """Check a T5 file or folder, 16-bit, fp8 or packed by bitsandbytes.

    Args:
        config: as in :func:`flux_source`.

    Raises:
        CheckpointError: it is no complete T5 encoder, or is packed otherwise than ``config`` says.
        ConfigError: ``config`` has a budget, which is for transformers.
    """
    if config is not None and config.budget_gib is not None:
        raise ConfigError(
            f"auto:{config.budget_gib:g} in skip_modules is a budget for the transformer, and T5 has none. "
            "Connect a second Quantization Config, without auto, to Load Quantized T5."
        )
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
    return Source(checkpoint, read_clip_l_config(checkpoint.path, tensors), tensors, {}, QuantConfig("none"))


def _source(
    checkpoint: Checkpoint,
    model: FluxConfig | T5Config,
    tensors: Mapping[str, Assembly],
    modules: Mapping[str, tuple[str, ...]],
    config: QuantConfig | None,
    what: str,
    progress: Progress = lambda done, total: None,
) -> Source:
    shapes = model.tensor_shapes()
    require_shapes(checkpoint.path, tensors, shapes, what)
    config, quantizing = agreed(checkpoint, tensors, modules, config)
    for entry in unmatched([name for known in modules.values() for name in known], config.skip_modules):
        logger.warning("skip_modules: %r matches no module of %s.", entry, checkpoint.name)
    tensors = {name: tensors[name] for name in shapes}
    quantizing = quantizing and config.precision != "none"
    to_pack = [m for m, known in modules.items() if quantizing and not is_skipped(known, config.skip_modules)]
    if not quantizing or config.budget_gib is None:
        if quantizing and not to_pack:
            config = replace(config, precision="none")
        return Source(checkpoint, model, tensors, {f"{module}.weight": config for module in to_pack}, config)
    choice = choose(checkpoint, model, tensors, to_pack, config, progress)
    packed = {f"{module}.weight": recipe for module, recipe in choice.recipes.items()}
    none = QuantConfig("none", config.compute_dtype)
    main = most_common((recipe, math.prod(tensors[name].shape)) for name, recipe in packed.items()) if packed else none
    return Source(checkpoint, model, tensors, packed, main, choice.basis)
