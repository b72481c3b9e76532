"""The host's weight patches told apart: plain LoRA runs beside a packed weight, the rest is added to it at each use."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from comfy.weight_adapter import WeightAdapterBase

from ...quant_core.lora import Branch, same

logger = logging.getLogger(__name__)

# (strength, patch, strength of the model, (dimension, start, length) or None, function or None)
Patch = tuple[float, Any, float, tuple[int, int, int] | None, Any]


def branches(key: str, patches: Sequence[Patch], shape: tuple[int, int]) -> list[Branch] | None:
    """The ``patches`` of a weight of ``shape (rows, columns)`` as LoRA branches.

    A LoRA whose sizes do not fit is named in the log and left out. None where one of the patches is something else
    (DoRA, LoKr, LoHa, a full difference, ...): then they have to be applied to the whole weight, in their order.
    """
    found = []
    for strength, patch, strength_model, offset, function in patches:
        if not _is_plain_lora(patch) or strength_model != 1.0 or function is not None:
            return None
        if offset is not None and offset[0] != 0:
            return None
        up, down, alpha = patch.weights[:3]
        up, down = up.flatten(1), down.flatten(1)
        start, rows = (offset[1], offset[2]) if offset is not None else (0, shape[0])
        if up.shape != (rows, down.shape[0]) or down.shape[1] != shape[1] or start + rows > shape[0]:
            logger.warning(
                "LoRA for %s left out: its matrices %s and %s do not fit %s rows of a weight of shape %s.",
                key, tuple(up.shape), tuple(down.shape), rows, tuple(shape),
            )  # fmt: skip
            continue
        scale = strength * (1.0 if alpha is None else float(alpha) / down.shape[0])
        found.append(Branch(down, up, scale, start))
    return found


def counted_together(patches: Sequence[Patch]) -> list[Patch]:
    """``patches`` with equal ones counted together, so that +s and -s leave nothing.

    DoRA, which is not linear in its strength, and full differences stay as they are; nor is a patch moved past one that
    does more than add.
    """
    together: list[Patch] = []
    start = 0  # of the patches that only add, up to here
    for patch in patches:
        same_as = next((i for i in range(start, len(together)) if _is_same(patch, together[i])), None)
        if same_as is None:
            together.append(patch)
            if not _only_adds(patch):
                start = len(together)
        else:
            other = together[same_as]
            together[same_as] = (other[0] + patch[0], *other[1:])
    return [patch for patch in together if patch[0] != 0 or not isinstance(patch[1], WeightAdapterBase)]


def changes_shape(patches: Sequence[Patch]) -> bool:
    """Whether one of ``patches`` makes the weight another size, as control LoRAs widen ``img_in``."""
    for _, patch, *_ in patches:
        if isinstance(patch, WeightAdapterBase):
            if patch.name == "lora" and patch.weights[5] is not None:
                return True
        elif isinstance(patch, tuple) and patch[0] == "diff" and len(patch[1]) > 1 and patch[1][1].get("pad_weight"):
            return True
    return False


def _is_plain_lora(patch: Any) -> bool:
    if not isinstance(patch, WeightAdapterBase) or patch.name != "lora":
        return False
    mid, dora_scale, reshape = patch.weights[3:6]
    return mid is None and dora_scale is None and reshape is None


def _is_same(patch: Patch, other: Patch) -> bool:
    a, b = patch[1], other[1]
    if patch[2:] != other[2:] or type(a) is not type(b) or not isinstance(a, WeightAdapterBase):
        return False
    if not _only_adds(patch) or not _only_adds(other) or len(a.weights) != len(b.weights):
        return False
    return all(_same_part(x, y) for x, y in zip(a.weights, b.weights, strict=True))


def _only_adds(patch: Patch) -> bool:
    """Whether the patch adds something that depends on nothing but itself."""
    _, value, strength_model, _, _ = patch
    if strength_model != 1.0:
        return False
    if isinstance(value, WeightAdapterBase):
        dora_scale = {"lora": 4, "loha": 7, "lokr": 8}.get(value.name)
        return dora_scale is not None and value.weights[dora_scale] is None
    return isinstance(value, tuple) and (len(value) == 1 or value[0] == "diff")


def _same_part(x: Any, y: Any) -> bool:
    if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor):
        return same(x, y)
    return type(x) is type(y) and x == y
