"""The one product everything runs through: inputs times a packed or plain weight."""

from __future__ import annotations

import torch

from .layouts import FourBitLayout, is_packed
from .lora import LowRank


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    low_rank: LowRank | None = None,
    float8: bool = False,
) -> torch.Tensor:
    """``x (..., columns)`` times ``weight (rows, columns)`` plus ``bias (rows,)``, in the dtype of ``x``.

    A packed weight is multiplied by its layout's kernels, with the arithmetic of bitsandbytes' ``Linear4bit`` or
    ``Linear8bitLt``; a plain one is cast to the dtype of ``x``. All must be on one device.

    Args:
        low_rank: LoRA, in the dtype of ``x``.
        float8: multiply 4-bit weights in float8, where the device can.
    """
    bias = None if bias is None else bias.to(x.dtype)
    if not is_packed(weight):
        y = torch.nn.functional.linear(x, weight.to(x.dtype), bias)
        return y if low_rank is None else y + low_rank.of(x, None)
    if weight._layout_cls == FourBitLayout.NAME:
        return weight.layout_cls.linear(x, weight, bias, low_rank, float8)
    if low_rank is None:
        return weight.layout_cls.linear(x, weight, bias)
    return weight.layout_cls.add_linear(low_rank.of(x, bias), x, weight)
