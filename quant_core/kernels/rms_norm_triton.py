"""The Triton kernel behind :mod:`.rms_norm`. Importing this needs Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .launch import Launcher, aligned, ceil_div, power_of_2

SIZE = 2048  # values that a program takes: so many rows


@triton.jit
def _rms_norm(
    x, outer_stride, inner_stride, row_stride, weight, y, inner, rows, columns, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``ROWS`` of the rows of ``x[outer, inner]``."""
    tiles = tl.cdiv(rows, ROWS)
    group = (tl.program_id(0) // tiles).to(tl.int64)
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS).to(tl.int64)[:, None]
    column = tl.arange(0, BLOCK)[None, :]
    inside = (row < rows) & (column < columns)
    begin = x + group // inner * outer_stride + group % inner * inner_stride
    value = tl.load(begin + row * row_stride + column, mask=inside, other=0).to(tl.float32)
    scale = tl.load(weight + column, mask=column < columns, other=0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, axis=1) / columns + eps)
    result = value * inverse[:, None] * scale
    tl.store(y + (group * rows + row) * columns + column, result.to(y.dtype.element_ty), mask=inside)


_launch_rms_norm = Launcher(_rms_norm)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, eps: float, size: int = SIZE, warps: int = 4):
    """Fill the contiguous ``y`` from ``x (outer, inner, rows, columns)``, whose rows may lie apart."""
    (outer, inner, rows, columns), (*strides, _) = x.shape, x.stride()
    block = power_of_2(columns)
    at_once = min(max(size // block, 1), power_of_2(rows))
    programs = outer * inner * ceil_div(rows, at_once)
    sizes = *strides, inner, rows, columns
    key = (x.device.index, x.dtype, programs, sizes, at_once, warps) if aligned(x, weight, y) else None
    _launch_rms_norm(programs, key, x, *strides, weight, y, inner, rows, columns, eps, at_once, block, num_warps=warps)
