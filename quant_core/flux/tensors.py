"""The native tensors of a FLUX transformer, out of a checkpoint under native or diffusers' names."""

from __future__ import annotations

import logging
import re

from ..assembly import Assembly
from ..errors import CheckpointError
from ..stored import Contents
from .config import count_blocks
from .names import LINEARS, NORMS, SWAPPED_HALVES, diffusers_parts, native_names

logger = logging.getLogger(__name__)

_NORM_WEIGHT = re.compile(r"(?<=_norm)\.weight$")


def native_tensors(contents: Contents, prefix: str) -> dict[str, Assembly]:
    """A single file's tensors, without their ``prefix``. Newer hosts save the scale of a norm as its weight."""
    tensors = {name[len(prefix) :]: Assembly((tensor,)) for name, tensor in contents.tensors.items()}
    return {_NORM_WEIGHT.sub(".scale", name): tensor for name, tensor in tensors.items()}


def fused_tensors(contents: Contents) -> dict[str, Assembly]:
    """Native tensors, each made of the diffusers tensors that it stacks. Modules that are missing whole are left out.

    Raises:
        CheckpointError: a module has some of its parts and lacks others, or they do not fit together.
    """
    stored = contents.tensors
    double_blocks = count_blocks(stored, "transformer_blocks.")
    single_blocks = count_blocks(stored, "single_transformer_blocks.")
    _require_all_blocks(contents, num_layers=double_blocks, num_single_layers=single_blocks)
    tensors: dict[str, Assembly] = {}
    for module in native_names(LINEARS, double_blocks, single_blocks):
        parts = diffusers_parts(module)
        for leaf in ("weight", "bias"):
            names = [f"{part}.{leaf}" for part in parts]
            missing = [name for name in names if name not in stored]
            if len(missing) == len(names):
                continue
            if missing:
                _lacks(contents, missing[0], next(name for name in names if name in stored))
            fused = Assembly(tuple(stored[name] for name in names), swapped=module in SWAPPED_HALVES)
            _require_fitting(contents, fused)
            tensors[f"{module}.{leaf}"] = fused
        if f"{module}.weight" in tensors and f"{module}.bias" not in tensors:
            _lacks(contents, f"{parts[0]}.bias", f"{parts[0]}.weight")
    for native, diffusers in NORMS.items():
        for i in range(double_blocks if native.startswith("double") else single_blocks):
            if diffusers.format(i) in stored:
                tensors[native.format(i)] = Assembly((stored[diffusers.format(i)],))
    for name, tensor in tensors.items():
        if tensor.unpacked:
            kinds = ", ".join(f"{part.name} ({part.packing or 'not packed'})" for part in tensor.parts)
            logger.info(
                "%s: %s cannot stay packed, because its parts differ or its blocks run across them: %s. It is kept at "
                "16 bit with their exact values.",
                contents.checkpoint.name, name, kinds,
            )  # fmt: skip
    return tensors


def _lacks(contents: Contents, missing: str, present: str):
    raise CheckpointError(
        contents.path,
        f"lacks the tensor {missing}, but has {present}.",
        "The model is incomplete: download it again, or choose another.",
    )


def _require_all_blocks(contents: Contents, **found: int):
    """A block that is missing whole leaves no trace in the names; ``config.json`` counts them."""
    for key, count in found.items():
        promised = (contents.checkpoint.config or {}).get(key)
        if type(promised) is int and promised != count:
            raise CheckpointError(
                contents.path,
                f"has {count} blocks where its config.json says {key} {promised}.",
                "The model is incomplete: download it again, or choose another.",
            )


def _require_fitting(contents: Contents, fused: Assembly):
    first = fused.parts[0]
    for part in fused.parts:
        if not part.shape or part.shape[1:] != first.shape[1:]:
            raise CheckpointError(
                contents.path,
                f"has the tensors {first.name} of shape {first.shape} and {part.name} of shape {part.shape}, which "
                "cannot be rows of one layer.",
                "The model is damaged or no FLUX: choose another.",
            )
