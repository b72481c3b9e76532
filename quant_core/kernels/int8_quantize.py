"""Triton: activations to 8 bit per token, outlier columns found and set apart without asking the device for a count."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .int8_configs import OUTLIER_CAPACITY
from .int8_reference import quantize_rows_reference
from .launch import IN_GRAPH_COLUMNS, Launcher, aligned, ceil_div, power_of_2

OUTLIER_BLOCK = 32  # columns that the product takes at a time

_FLOAT16_MAX = tl.constexpr(65504.0)
_ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23: adding it to a small float32 rounds to nearest even


@triton.jit
def _quantize_rows(
    x, x_stride, codes, absmax_out, state, outliers, columns, threshold,
    OUTLIERS: tl.constexpr, BLOCK: tl.constexpr, LIST_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    value = tl.load(x + row * x_stride + column, mask=inside, other=0).to(tl.float32)
    broken = tl.max((value != value).to(tl.int32), axis=0)
    value = tl.minimum(tl.maximum(value, -_FLOAT16_MAX), _FLOAT16_MAX).to(tl.float16).to(tl.float32)
    arrived = -1
    if OUTLIERS:
        # compiled graphs pass numbers in 64 bit
        outlying = tl.abs(value) >= tl.cast(threshold, tl.float32)
        # several rows may write here, but all of them the same
        tl.store(state + column, 1, mask=outlying & inside)
        value = tl.where(outlying, 0.0, value)
        # every thread's flags are written before this row is counted, and whoever counts last sees all of them
        tl.debug_barrier()
        arrived = tl.atomic_add(state + columns, 1, sem="acq_rel", scope="gpu")
    absmax = tl.max(tl.abs(value), axis=0)
    # the reciprocal first, as bitsandbytes' kernels on CPU and GPU do: 127 / absmax rounds differently
    scale = tl.where(absmax > 0, tl.math.div_rn(1.0, absmax) * 127.0, 0.0)
    # limited, which changes nothing, the product cannot be fused with the sum, where bitsandbytes rounds twice
    rounded = (tl.minimum(value * scale, 127.0) + _ROUND) - _ROUND
    tl.store(codes + row * columns + column, rounded.to(tl.int8), mask=inside)
    tl.store(absmax_out + row, tl.where(broken > 0, float("nan"), absmax))
    if OUTLIERS:
        if arrived == tl.num_programs(0) - 1:
            _list_outliers(state, outliers, columns, LIST_BLOCK)


@triton.jit
def _list_outliers(state, outliers, columns, BLOCK: tl.constexpr):
    """The outlier columns in ascending order, and their count behind all of them; ``state`` is zeros again."""
    count = 0
    for start in range(0, columns, BLOCK):
        column = start + tl.arange(0, BLOCK)
        flag = tl.load(state + column, mask=column < columns, other=0)
        tl.store(outliers + count + tl.cumsum(flag, axis=0) - 1, column, mask=flag > 0)
        tl.store(state + column, 0, mask=column < columns)
        count += tl.sum(flag, axis=0)
    tl.store(outliers + columns, count)
    tl.store(state + columns, 0)


@triton.jit(do_not_specialize=["tokens"])
def _gather_outliers(
    x, x_stride, codes, weight, scale, outliers, gathered, tokens, rows, columns,
    CAPACITY: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Outlier columns of ``x``, below them those of the dequantized weight, and 0 for their codes."""
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
            tl.store(gathered + row[:, None] * CAPACITY + slot[None, :], value, mask=kept)
    else:
        row = (program - x_programs) * BLOCK_ROWS + offset
        row_scale = tl.load(scale + row, mask=row < rows, other=0)
        for start in range(0, tl.minimum(count, CAPACITY), BLOCK):
            slot = start + tl.arange(0, BLOCK)
            column = tl.load(outliers + slot, mask=slot < count, other=0)
            mask = (row < rows)[:, None] & (slot < count)[None, :]
            code = tl.load(weight + row[:, None] * columns + column[None, :], mask=mask, other=0)
            value = (code.to(tl.float32) * row_scale[:, None] * (1 / 127)).to(gathered.dtype.element_ty)
            kept = (row < rows)[:, None] & (slot < CAPACITY)[None, :]
            tl.store(gathered + (tokens + row)[:, None] * CAPACITY + slot[None, :], value, mask=kept)


_launch_quantize_rows = Launcher(_quantize_rows)
_launch_gather_outliers = Launcher(_gather_outliers)


class Outliers(NamedTuple):
    """Outlier columns in device memory.

    Attributes:
        columns: int32 ``(columns + 1,)``: the outlier columns in ascending order, and in the last place their count.
        gathered: their inputs, and below them their dequantized weights ``(tokens + rows, OUTLIER_CAPACITY)``, in the
            dtype of ``x``, with zeros up to a multiple of ``OUTLIER_BLOCK`` columns.
    """

    columns: torch.Tensor
    gathered: torch.Tensor


def quantize_rows(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, torch.Tensor, Outliers | None]:
    """The kernels' ``quantize_rows_reference`` of ``x (tokens, columns)``, whose rows may lie apart.

    With a threshold it sets apart the outlier columns of ``x`` and of the int8 ``weight (rows, columns)``. Without, it
    is the reference itself for short rows in a compiled graph: see ``IN_GRAPH_COLUMNS``.
    """
    tokens, columns = x.shape
    if torch.compiler.is_dynamo_compiling() and threshold == 0 and columns <= IN_GRAPH_COLUMNS:
        return quantize_rows_reference(x)
    rows, stride = weight.shape[0], x.stride(0)
    codes = torch.empty(tokens, columns, dtype=torch.int8, device=x.device)
    absmax = torch.empty(tokens, dtype=torch.float32, device=x.device)
    state = outliers = None
    if threshold > 0:
        state = _state(x.device, columns)
        outliers = Outliers(
            torch.empty(columns + 1, dtype=torch.int32, device=x.device),
            torch.empty(tokens + rows, OUTLIER_CAPACITY, dtype=x.dtype, device=x.device),
        )
    block = power_of_2(columns)
    # a quarter of the flags is listed at a time: more take registers that the rows' quantizing does without
    warps = 4 if block <= 4096 else 8 if block <= 16384 else 16
    # the rest has just been allocated, which is on multiples of more
    key = (x.device.index, x.dtype, tokens, rows, columns, stride, threshold) if aligned(x, weight, scale) else None
    _launch_quantize_rows(
        tokens, key, x, stride, codes, absmax, state, outliers and outliers.columns, columns, threshold,
        threshold > 0, block, max(block // 4, min(block, 128)),
        num_warps=warps,
    )  # fmt: skip
    if outliers is None:
        return codes, absmax, None
    block_rows = 32
    _launch_gather_outliers(
        ceil_div(tokens, block_rows) + ceil_div(rows, block_rows), key,
        x, stride, codes, weight, scale, outliers.columns, outliers.gathered, tokens, rows, columns,
        OUTLIER_CAPACITY, block_rows, OUTLIER_BLOCK,
    )  # fmt: skip
    return codes, absmax, outliers


_states: dict[tuple[int | None, int], torch.Tensor] = {}


def _state(device: torch.device, columns: int) -> torch.Tensor:
    """int32 zeros, more than ``columns``: a flag for each, and a count of rows. A launch leaves them as zeros.

    The launches of one stream come one after the other, so they share it. A graph, compiled or captured, has its own,
    because it may run beside them.
    """
    if torch.compiler.is_dynamo_compiling():
        return torch.zeros(columns + 1, dtype=torch.int32, device=device)
    stream = 0
    if device.type == "cuda":  # else Triton's interpreter
        if torch.cuda.is_current_stream_capturing():
            return torch.zeros(columns + 1, dtype=torch.int32, device=device)
        stream = torch.cuda.current_stream(device).cuda_stream
    state = _states.get((device.index, stream))
    if state is None or state.shape[0] <= columns:
        state = _states[device.index, stream] = torch.zeros(2 * columns, dtype=torch.int32, device=device)
    return state
