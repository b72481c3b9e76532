"""GELU between two products, for cards on which a packed model would wait longer for it than for its weights."""

from __future__ import annotations

import torch

from . import SIXTEEN_BIT, triton_available
from .launch import on_device_of

# gelu(x) = x * sigmoid(2 * INNER * (x + CUBIC * x**3)), which is its tanh form: 1 + tanh(u) = 2 * sigmoid(2 * u)
INNER = 0.7978845608028654  # sqrt(2 / pi)
CUBIC = 0.044715


def gelu_reference(x: torch.Tensor) -> torch.Tensor:
    """GELU's tanh form of ``x``. Source: Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415."""
    return torch.nn.functional.gelu(x, approximate="tanh")


def can_activate(x: torch.Tensor) -> bool:
    """Whether the kernel, and the formula of compiled graphs, take ``x``."""
    return x.dtype in SIXTEEN_BIT and not x.requires_grad and triton_available(x.device)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """As :func:`gelu_reference`, rounding aside, for ``x (..., columns)`` whose rows may lie apart, as FLUX's do.

    A compiled graph takes the formula with a sigmoid, which inductor makes less of than of a tanh.
    """
    if not can_activate(x):
        return gelu_reference(x)
    if torch.compiler.is_compiling():
        return gelu_by_sigmoid(x)
    return gelu_by_triton(x)


def gelu_by_sigmoid(x: torch.Tensor) -> torch.Tensor:
    """GELU of ``x`` in float32, rounded once."""
    value = x.float()
    return (value * torch.sigmoid(2 * INNER * (value + CUBIC * value * value * value))).to(x.dtype)


def gelu_by_triton(x: torch.Tensor) -> torch.Tensor:
    """The kernel's :func:`gelu_by_sigmoid`. The result is contiguous."""
    from . import gelu_triton as kernels

    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        rows = x.reshape(-1, x.shape[-1])
        with on_device_of(x):
            kernels.gelu(rows if rows.stride(-1) == 1 else rows.contiguous(), y)
    return y
