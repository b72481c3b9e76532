"""Triton: activations to 8 bit per token, outlier columns found and set apart without asking the device for a count."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .launch import Launcher, aligned, ceil_div, power_of_2

OUTLIER_BLOCK = 32  # columns that the product takes at a time
OUTLIER_CAPACITY = 512  # columns that are gathered; more are multiplied from where they lie

_FLOAT16_MAX = tl.constexpr(65504.0)
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it to a small float32 rounds to nearest even


@triton.jit
def _quantize_rows(
    x, x_stride, codes, absmax_out, is_outlier, columns, threshold, OUTLIERS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(x + row * x_stride + column, mask=inside, other=0).to(tl.float32)
    broken = tl.max((value != value).to(tl.int32), axis=0)
    value = tl.minimum(tl.maximum(value, -_FLOAT16_MAX), _FLOAT16_MAX).to(tl.float16).to(tl.float32)
    if OUTLIERS:
        outlying = tl.abs(value) >= threshold
        # several rows may write here, but all of them the same
        tl.store(is_outlier + column, 1, mask=outlying & inside)
        value = tl.where(outlying, 0.0, value)
    absmax = tl.max(tl.abs(value), axis=0)
    # the reciprocal first, as bitsandbytes' kernels on CPU and GPU do: 127 / absmax rounds differently
    scale = tl.where(absmax > 0, tl.math.div_rn(1.0, absmax) * 127.0, 0.0)
    rounded = (value * scale + _ROUND) - _ROUND
    tl.store(codes + row * columns + column, rounded.to(tl.int8), mask=inside)
    tl.store(absmax_out + row, tl.where(broken > 0, float("nan"), absmax))


@triton.jit
def _list_outliers(is_outlier, outliers, columns, BLOCK: tl.constexpr):
    """The outlier columns in ascending order, and their count behind all of them."""
    column = tl.arange(0, BLOCK)
    flag = tl.load(is_outlier + column, mask=column < columns, other=0)
    tl.store(outliers + tl.cumsum(flag, axis=0) - 1, column, mask=flag > 0)
    tl.store(outliers + columns, tl.sum(flag, axis=0))


@triton.jit(do_not_specialize=["tokens"])
def _gather_outliers(
    x, x_stride, codes, weight, scale, outliers, x_out, w_out, tokens, rows, columns,
    CAPACITY: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Outlier columns of ``x`` and of the dequantized weight side by side, and 0 for their codes."""
    count = tl.load(outliers + columns)
    program = tl.program_id(0)
    x_programs = tl.cdiv(tokens, BLOCK_ROWS)
    offset = tl.arange(0, BLOCK_ROWS).to(tl.int64)
    if program < x_programs:
        row = program * BLOCK_ROWS + offset
        for start in range(0, count, BLOCK):
            slot = start + tl.arange(0, BLOCK)
            column = tl.load(outliers + slot, mask=slot < count, other=0)
            mask = (row < tokens)[:, None] & (slot < count)[None, :]
            value = tl.load(x + row[:, None] * x_stride + column[None, :], mask=mask, other=0)
            tl.store(codes + row[:, None] * columns + column[None, :], 0, mask=mask)
            kept = (row < tokens)[:, None] & (slot < CAPACITY)[None, :]
            tl.store(x_out + row[:, None] * CAPACITY + slot[None, :], value, mask=kept)
    else:
        row = (program - x_programs) * BLOCK_ROWS + offset
        row_scale = tl.load(scale + row, mask=row < rows, other=0)
        for start in range(0, tl.minimum(count, CAPACITY), BLOCK):
            slot = start + tl.arange(0, BLOCK)
            column = tl.load(outliers + slot, mask=slot < count, other=0)
            mask = (row < rows)[:, None] & (slot < count)[None, :]
            code = tl.load(weight + row[:, None] * columns + column[None, :], mask=mask, other=0)
            value = (code.to(tl.float32) * row_scale[:, None] * (1 / 127)).to(w_out.dtype.element_ty)
            kept = (row < rows)[:, None] & (slot < CAPACITY)[None, :]
            tl.store(w_out + row[:, None] * CAPACITY + slot[None, :], value, mask=kept)


_launch_quantize_rows = Launcher(_quantize_rows)
_launch_list_outliers = Launcher(_list_outliers)
_launch_gather_outliers = Launcher(_gather_outliers)


@dataclass(frozen=True)
class Outliers:
    """Outlier columns in device memory.

    Attributes:
        columns: int32 ``(columns + 1,)``: the outlier columns in ascending order, and in the last place their count.
        x: their inputs ``(tokens, OUTLIER_CAPACITY)``, with zeros up to a multiple of ``OUTLIER_BLOCK`` columns.
        weight: their dequantized weights ``(rows, OUTLIER_CAPACITY)``, in the dtype of ``x``, likewise.
    """

    columns: torch.Tensor
    x: torch.Tensor
    weight: torch.Tensor


def quantize_rows(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor, Outliers | None]:
    """The kernels' ``quantize_rows_reference`` of ``x (tokens, columns)``, whose rows may lie apart.

    With a threshold it sets apart the outlier columns of ``x`` and of the int8 ``weight (rows, columns)``.
    """
    tokens, columns = x.shape
    codes = torch.empty(tokens, columns, dtype=torch.int8, device=x.device)
    absmax = torch.empty(tokens, dtype=torch.float32, device=x.device)
    block = power_of_2(columns)
    warps = 4 if block <= 4096 else 8 if block <= 16384 else 16
    is_outlier = torch.zeros(columns, dtype=torch.int32, device=x.device) if threshold > 0 else None
    rows, stride = weight.shape[0], x.stride(0)
    # the rest has just been allocated, which is on multiples of more
    key = (x.device.index, x.dtype, tokens, rows, columns, stride, threshold) if aligned(x, weight, scale) else None
    # a multiplication and an addition fused would round once, where bitsandbytes rounds twice
    _launch_quantize_rows(
        tokens, key, x, stride, codes, absmax, is_outlier, columns, threshold, threshold > 0, block,
        num_warps=warps, enable_fp_fusion=False,
    )  # fmt: skip
    if is_outlier is None:
        return codes, absmax, None
    outliers = Outliers(
        torch.empty(columns + 1, dtype=torch.int32, device=x.device),
        x.new_empty(tokens, OUTLIER_CAPACITY),
        x.new_empty(rows, OUTLIER_CAPACITY),
    )
    _launch_list_outliers(1, (x.device.index, columns), is_outlier, outliers.columns, columns, block, num_warps=8)
    block_rows = 32
    _launch_gather_outliers(
        ceil_div(tokens, block_rows) + ceil_div(rows, block_rows), key,
        x, stride, codes, weight, scale, outliers.columns, outliers.x, outliers.weight, tokens, rows, columns,
        OUTLIER_CAPACITY, block_rows, OUTLIER_BLOCK,
    )  # fmt: skip
    return codes, absmax, outliers
