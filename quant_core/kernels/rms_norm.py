"""RMS normalization of queries and keys as the product before leaves them, each a part of its rows.

torch first writes those parts one after the other. A compiled graph had better take torch's all the same, which
inductor joins with what is beside it.
"""

from __future__ import annotations

import torch

from . import SIXTEEN_BIT, triton_available
from .launch import on_device_of

MAX_COLUMNS = 1024  # of a row, all of which one program takes
DIMENSIONS = 4  # of inputs, at most


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float | None) -> torch.Tensor:
    """``x (..., columns)`` over the root of the mean of its squares and ``eps``, times ``weight (columns,)``.

    Source: Zhang and Sennrich, https://arxiv.org/abs/1910.07467.
    """
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)


def can_normalize(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the kernel takes ``x (..., columns)``, whose rows may lie apart, and ``weight (columns,)``."""
    return (
        x.dtype in SIXTEEN_BIT
        and weight.dtype == x.dtype
        and weight.device == x.device
        and weight.shape == x.shape[-1:]
        and weight.is_contiguous()
        and x.shape[-1] <= MAX_COLUMNS
        and x.ndim <= DIMENSIONS
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and triton_available(x.device)
    )


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float | None) -> torch.Tensor:
    """As :func:`rms_norm_reference`, in float32 and rounded once, by Triton. The result is contiguous.

    Args:
        eps: None is that of float32, as torch's kernel for 16-bit inputs has it.
    """
    from . import rms_norm_triton as kernels

    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        rows = x if x.ndim == DIMENSIONS else x[(None,) * (DIMENSIONS - x.ndim)]
        with on_device_of(x):
            kernels.rms_norm(
                rows if rows.stride(-1) == 1 else rows.contiguous(),
                weight,
                y,
                torch.finfo(torch.float32).eps if eps is None else eps,
            )
    return y
