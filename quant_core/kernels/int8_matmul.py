"""Triton: the int8 product with scales, bias, outlier columns and addition in its epilogue."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .int8_configs import OUTLIER_CAPACITY, MatmulConfig
from .int8_quantize import OUTLIER_BLOCK, Outliers
from .launch import Launcher, aligned, ceil_div


@triton.jit
def _place(tile, tokens, rows, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """First token and first row of a tile; ``GROUP`` tiles of tokens share their rows of the weight in the L2 cache."""
    tiles_m = tl.cdiv(tokens, BLOCK_M)
    tiles_n = tl.cdiv(rows, BLOCK_N)
    first = tile // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    within = tile % (GROUP * tiles_n)
    return (first + within % height) * BLOCK_M, within // height * BLOCK_N


@triton.jit
def _scaled(sums, m, n, absmax, scale, tokens, rows):
    """int32 sums to float32 results."""
    row_scale = tl.load(absmax + m, mask=m < tokens, other=0)
    column_scale = tl.load(scale + n, mask=n < rows, other=0)
    return sums.to(tl.float32) * (row_scale[:, None] * column_scale[None, :]) * (1 / 16129)


@triton.jit
def _plus_outliers(
    result, m, n, x, x_stride, weight, scale, outliers, gathered, tokens, rows, columns,
    CAPACITY: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """``result`` plus the outlier columns in 16 bit: the gathered ones, then those beyond, from where they lie."""
    count = tl.load(outliers + columns)
    slot = tl.arange(0, BLOCK)
    m = m.to(tl.int64)
    n = n.to(tl.int64)
    m_mask = (m < tokens)[:, None]
    n_mask = (n < rows)[None, :]
    x_tile = gathered + m[:, None] * CAPACITY + slot[None, :]
    w_tile = gathered + (tokens + n)[None, :] * CAPACITY + slot[:, None]
    for start in range(0, tl.minimum(count, CAPACITY), BLOCK):
        a = tl.load(x_tile + start, mask=m_mask, other=0)
        b = tl.load(w_tile + start, mask=n_mask, other=0)
        result = tl.dot(a, b, result, input_precision="tf32x3")
    row_scale = tl.load(scale + n, mask=n < rows, other=0)
    for start in range(CAPACITY, count, BLOCK):
        mask = start + slot < count
        column = tl.load(outliers + start + slot, mask=mask, other=0)
        a = tl.load(x + m[:, None] * x_stride + column[None, :], mask=m_mask & mask[None, :], other=0)
        code = tl.load(weight + n[None, :] * columns + column[:, None], mask=n_mask & mask[:, None], other=0)
        b = (code.to(tl.float32) * row_scale[None, :] * (1 / 127)).to(a.dtype)
        result = tl.dot(a, b, result, input_precision="tf32x3")
    return result


@triton.jit(do_not_specialize=["tokens"])
def _matmul(
    codes, weight, y, absmax, scale, bias, x, x_stride, outliers, gathered, tokens, rows, columns,
    ADD: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, CAPACITY: tl.constexpr, OUTLIER_BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile a program, any sizes, any card."""
    first_m, first_n = _place(tl.program_id(0), tokens, rows, BLOCK_M, BLOCK_N, GROUP)
    m = first_m + tl.arange(0, BLOCK_M)
    n = first_n + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    # tokens and rows beyond the end are read from the start again, and never stored
    a_tile = codes + (m % tokens).to(tl.int64)[:, None] * columns + k[None, :]
    b_tile = weight + (n % rows).to(tl.int64)[None, :] * columns + k[:, None]
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for start in range(0, columns, BLOCK_K):
        if EVEN_K:
            a = tl.load(a_tile)
            b = tl.load(b_tile)
        else:
            a = tl.load(a_tile, mask=(k < columns - start)[None, :], other=0)
            b = tl.load(b_tile, mask=(k < columns - start)[:, None], other=0)
        sums = tl.dot(a, b, sums, out_dtype=tl.int32)
        a_tile += BLOCK_K
        b_tile += BLOCK_K
    result = _scaled(sums, m, n, absmax, scale, tokens, rows)
    if outliers is not None:
        result = _plus_outliers(
            result, m, n, x, x_stride, weight, scale, outliers, gathered, tokens, rows, columns,
            CAPACITY, OUTLIER_BLOCK,
        )  # fmt: skip
    if bias is not None:
        result += tl.load(bias + n, mask=n < rows, other=0).to(tl.float32)[None, :]
    y_tile = y + m.to(tl.int64)[:, None] * rows + n[None, :]
    mask = (m < tokens)[:, None] & (n < rows)[None, :]
    if ADD:
        result += tl.load(y_tile, mask=mask, other=0).to(tl.float32)
    tl.store(y_tile, result.to(y.dtype.element_ty), mask=mask)


_launch_matmul = Launcher(_matmul)


def fits_bulk_copy(y: torch.Tensor, columns: int) -> bool:
    """Whether rows of ``y (tokens, rows)`` and of int8 ``(…, columns)`` start at the 16 bytes that bulk copies want."""
    return columns % 16 == 0 and y.shape[1] * y.element_size() % 16 == 0 and y.data_ptr() % 16 == 0


def matmul_key(codes, weight, y, absmax, scale, bias, x, outliers, config, add) -> tuple | None:
    """The launcher's key for the arguments of :func:`matmul`."""
    given = [tensor for tensor in (codes, weight, y, absmax, scale, bias, x) if tensor is not None]
    if not aligned(*given):
        return None
    # x, where it is given, has the dtype of y
    types = y.device.index, y.dtype, None if bias is None else bias.dtype
    return types, *codes.shape, weight.shape[0], None if x is None else x.stride(0), outliers is None, config, add


def matmul(
    codes: torch.Tensor,
    weight: torch.Tensor,
    y: torch.Tensor,
    absmax: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    x: torch.Tensor | None,
    outliers: Outliers | None,
    config: MatmulConfig,
    add: bool = False,
) -> None:
    """Write the product of int8 ``codes (tokens, columns)`` and ``weight (rows, columns)`` to ``y (tokens, rows)``.

    Args:
        absmax: float32, of each token; ``scale``: of each row of the weight.
        x: what ``codes`` were quantized from ``(tokens, columns)``; needed with ``outliers``.
        add: add to what is in ``y``.
    """
    tokens, columns = codes.shape
    rows = weight.shape[0]
    tiles = ceil_div(tokens, config.block_m) * ceil_div(rows, config.block_n)
    x, x_stride, listed, gathered = (x, x.stride(0), *outliers) if outliers else (None, 0, None, None)
    key = matmul_key(codes, weight, y, absmax, scale, bias, x, outliers, config, add)
    _launch_matmul(
        tiles, key, codes, weight, y, absmax, scale, bias, x, x_stride, listed, gathered, tokens, rows, columns,
        add, columns % config.block_k == 0, config.block_m, config.block_n, config.block_k,
        config.group, OUTLIER_CAPACITY, OUTLIER_BLOCK,
        num_warps=config.warps, num_stages=config.stages,
    )  # fmt: skip
