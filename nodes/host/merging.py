"""What the host's merging nodes leave on a model: whole weights of another, blended in when the model is loaded."""

from __future__ import annotations

import comfy.lora
import torch


def split_merges(patches: list[tuple]) -> tuple[list[tuple], list[tuple]]:
    """The patches of one weight, up to and with the last that blends in another model's weight; and those after it."""
    # the host's form of such a patch: a list of that weight and of the patches on it
    last = max((place for place, patch in enumerate(patches, 1) if isinstance(patch[1], list)), default=0)
    return patches[:last], patches[last:]


def merged(patches: list[tuple], weight: torch.Tensor, key: str) -> torch.Tensor:
    """``weight`` with patches in it, blended in float32 by the host, in the dtype of ``weight``, which stays."""
    if not patches:
        return weight
    blended = weight.to(torch.float32, copy=True)
    return comfy.lora.calculate_weight(patches, blended, key).to(weight.dtype)
