"""The Triton kernel behind :mod:`.gelu`. Importing this needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .gelu import CUBIC, INNER
from .launch import Launcher, aligned, ceil_div, power_of_2

MAX_BLOCK = 2048  # columns of a row that a program takes

_CUBIC = tl.constexpr(CUBIC)
_TWICE_INNER = tl.constexpr(2 * INNER)


@triton.jit
def _gelu(x, stride, y, columns, BLOCK: tl.constexpr):
    blocks = tl.cdiv(columns, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(x + row * stride + column, mask=inside, other=0).to(tl.float32)
    inner = _TWICE_INNER * (value + _CUBIC * value * value * value)
    tl.store(y + row * columns + column, (value / (1 + tl.exp(-inner))).to(y.dtype.element_ty), mask=inside)


_launch_gelu = Launcher(_gelu)


def gelu(x: torch.Tensor, y: torch.Tensor, block: int = MAX_BLOCK, warps: int = 4) -> None:
    """Fill the contiguous ``y`` from ``x (rows, columns)``, whose rows may lie apart."""
    (rows, columns), stride = x.shape, x.stride(0)
    block = min(block, power_of_2(columns))
    programs = rows * ceil_div(columns, block)
    key = (x.device.index, x.dtype, programs, columns, stride, block, warps) if aligned(x, y) else None
    _launch_gelu(programs, key, x, stride, y, columns, block, num_warps=warps)
