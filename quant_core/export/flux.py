"""FLUX for diffusers: native weights cut into the layers of ``FluxTransformer2DModel``, packed as they are."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from ..errors import ConfigError
from ..flux.config import FluxConfig
from ..flux.names import NORMS, SWAPPED_HALVES, diffusers_parts
from ..layouts import is_packed, rows, swap_halves
from .contents import FolderContents, also_skipped
from .tensors import TensorSpec, group, unpacked

logger = logging.getLogger(__name__)

MLP_RATIO = 4  # diffusers' class has no other


def flux_contents(tensors: Mapping[str, torch.Tensor], model: FluxConfig) -> FolderContents:
    """Cut a FLUX into diffusers' layers. The values of every layer are those that it has here, bit for bit.

    A packed weight is cut by rows and stays packed. Where that would cut a quantization block, or where diffusers'
    skip list would have the layer at 16 bit, it is dequantized, and the log names it.

    Args:
        tensors: by native names.

    Raises:
        ConfigError: diffusers' class has no such sizes.
    """
    config = flux_config(model)
    cuts = {module: _cuts(module, shape[0], model) for module, shape in model.linear_shapes().items()}
    packed = {
        part: is_packed(tensors[f"{module}.weight"]) and _can_be_cut(module, tensors[f"{module}.weight"], parts)
        for module, parts in cuts.items()
        for part in parts
    }
    cut_through = [
        module
        for module, parts in cuts.items()
        if is_packed(tensors[f"{module}.weight"]) and not packed[next(iter(parts))]
    ]
    _log_unpacked(cut_through, "diffusers' layers would cut their quantization blocks")
    caught: list[str] = []
    # what is caught goes onto the list too, which may catch more
    while any(packed.values()) and (more := also_skipped([p for p, is_so in packed.items() if not is_so], packed)):
        packed |= dict.fromkeys(more, False)
        caught += more
    _log_unpacked(caught, "diffusers' skip list cannot name proj_out, the last layer, without them")

    groups = []
    for module, parts in cuts.items():
        for part, (start, stop) in parts.items():
            for leaf in ("weight", "bias"):
                tensor = tensors[f"{module}.{leaf}"]
                unpack = is_packed(tensor) and not packed[part]
                cut = partial(_cut, tensor, start, stop, unpack, module in SWAPPED_HALVES)
                shape = (stop - start, *tensor.shape[1:])
                groups.append(group(f"{part}.{leaf}", cut, TensorSpec(tensor.dtype, shape) if unpack else None))
    for native, diffusers in NORMS.items():
        for i in range(model.depth if native.startswith("double") else model.depth_single_blocks):
            groups.append(group(diffusers.format(i), partial(tensors.__getitem__, native.format(i))))
    plain = [part for part, is_so in packed.items() if not is_so]
    return FolderContents(config, "diffusion_pytorch_model", groups, plain)


def flux_config(model: FluxConfig) -> dict[str, Any]:
    """``config.json`` of diffusers' ``FluxTransformer2DModel``.

    Raises:
        ConfigError: it has no such sizes.
    """
    if model.mlp_size != MLP_RATIO * model.hidden_size:
        raise ConfigError(
            f"This FLUX has {model.mlp_size} channels between the layers of a block, but diffusers' class always has "
            f"{MLP_RATIO} times its {model.hidden_size}. Save it as a single file."
        )
    return {
        "_class_name": "FluxTransformer2DModel",
        "_diffusers_version": version("diffusers"),
        "patch_size": 1,
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "num_layers": model.depth,
        "num_single_layers": model.depth_single_blocks,
        "attention_head_dim": model.head_dim,
        "num_attention_heads": model.num_heads,
        "joint_attention_dim": model.context_in_dim,
        "pooled_projection_dim": model.vec_in_dim,
        "guidance_embeds": model.guidance_embed,
        "axes_dims_rope": list(model.axes_dim),
    }


def _cuts(module: str, module_rows: int, model: FluxConfig) -> dict[str, tuple[int, int]]:
    """diffusers' layers of a native one -> (first row, row after the last). Query, key and value come first."""
    parts = diffusers_parts(module)
    sizes = [module_rows] if len(parts) == 1 else [model.hidden_size] * 3
    sizes += [module_rows - sum(sizes)] if len(parts) > len(sizes) else []
    ends = list(itertools.accumulate(sizes))
    return dict(zip(parts, zip([0, *ends], ends, strict=False), strict=True))


def _can_be_cut(module: str, weight: torch.Tensor, parts: Mapping[str, tuple[int, int]]) -> bool:
    if module in SWAPPED_HALVES:
        return swap_halves(weight) is not None
    return len(parts) == 1 or all(rows(weight, start, stop) is not None for start, stop in parts.values())


def _cut(tensor: torch.Tensor, start: int, stop: int, unpack: bool, swapped: bool) -> torch.Tensor:
    if unpack:
        tensor = unpacked(tensor)
    if swapped:
        tensor = swap_halves(tensor)
    return tensor if (start, stop) == (0, tensor.shape[0]) else rows(tensor, start, stop)


def _log_unpacked(modules: list[str], why: str):
    if modules:
        logger.warning("Saved at 16 bit with their exact values, because %s: %s.", why, ", ".join(modules))
