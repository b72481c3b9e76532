"""The one product everything runs through: inputs times a packed or plain weight."""

from __future__ import annotations

import torch

from .layouts import is_packed


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x (..., columns)`` times ``weight (rows, columns)`` plus ``bias (rows,)``, in the dtype of ``x``.

    A packed weight is multiplied by its layout's kernels, with the arithmetic of bitsandbytes' ``Linear4bit`` or
    ``Linear8bitLt``; a plain one is cast to the dtype of ``x``. All three must be on one device.
    """
    bias = None if bias is None else bias.to(x.dtype)
    if is_packed(weight):
        return weight.layout_cls.linear(x, weight, bias)
    return torch.nn.functional.linear(x, weight.to(x.dtype), bias)
