"""Gluon: the int8 product for compute capability 9.0, two blocks of columns on the tensor cores at any time.

Plain Triton waits for every ``tl.dot`` of integers before the next, so the tensor cores idle in between. Here the next
block's product is issued first, and copies run ahead across tiles.
"""

from __future__ import annotations

import functools

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .int8_configs import OUTLIER_CAPACITY, MatmulConfig
from .int8_matmul import matmul_key
from .int8_quantize import OUTLIER_BLOCK, Outliers
from .launch import Launcher, ceil_div


@gluon.jit
def _place(tile, tokens, rows, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, GROUP: gl.constexpr):
    """As ``int8_matmul._place``."""
    tiles_m = gl.cdiv(tokens, BLOCK_M)
    tiles_n = gl.cdiv(rows, BLOCK_N)
    first = tile // (GROUP * tiles_n) * GROUP
    height = gl.minimum(tiles_m - first, GROUP)
    within = tile % (GROUP * tiles_n)
    return (first + within % height) * BLOCK_M, within // height * BLOCK_N


@gluon.jit
def _copy(
    step, steps, blocks, codes, weight, a, b, arrived, tokens, rows,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, GROUP: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Start the copies of this program's ``step``-th block of columns, counted over its tiles."""
    wanted = step < steps
    tile = gl.program_id(0) + step // blocks * gl.num_programs(0)
    first_m, first_n = _place(tile, tokens, rows, BLOCK_M, BLOCK_N, GROUP)
    column = step % blocks * BLOCK_K
    slot = step % STAGES
    barrier = arrived.index(slot)
    mbarrier.expect(barrier, (BLOCK_M + BLOCK_N) * BLOCK_K, pred=wanted)
    tma.async_copy_global_to_shared(codes, [first_m, column], barrier, a.index(slot), pred=wanted)
    tma.async_copy_global_to_shared(weight, [first_n, column], barrier, b.index(slot), pred=wanted)


@gluon.jit
def _product(result, a, b):
    """``result`` plus the product of 16-bit tiles ``a (tokens, columns)`` and ``b (rows, columns)`` in registers."""
    A_SHARED: gl.constexpr = gl.NVMMASharedLayout.get_default_for(a.shape, a.dtype)
    B_SHARED: gl.constexpr = gl.NVMMASharedLayout.get_default_for(b.shape, b.dtype)
    a_shared = gl.allocate_shared_memory(a.dtype, a.shape, A_SHARED, a)
    b_shared = gl.allocate_shared_memory(b.dtype, b.shape, B_SHARED, b)
    fence_async_shared()
    return warpgroup_mma(a_shared, b_shared.permute((1, 0)), result)


@gluon.jit
def _plus_outliers(
    result, first_m, first_n, x, x_stride, weight, scale, outliers, gathered, tokens, rows, columns,
    BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, CAPACITY: gl.constexpr, BLOCK: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    """As ``int8_matmul._plus_outliers``."""
    TILE: gl.constexpr = gl.BlockedLayout([1, 8], [8 * 32 // BLOCK, BLOCK // 8], [WARPS, 1], [1, 0])
    ROW: gl.constexpr = gl.SliceLayout(1, TILE)
    COLUMN: gl.constexpr = gl.SliceLayout(0, TILE)
    count = gl.load(outliers + columns)
    slot = gl.arange(0, BLOCK, layout=COLUMN)
    m = first_m + gl.arange(0, BLOCK_M, layout=ROW)
    n = first_n + gl.arange(0, BLOCK_N, layout=ROW)
    m_mask = (m < tokens)[:, None]
    n_mask = (n < rows)[:, None]
    m = m.to(gl.int64)
    n = n.to(gl.int64)
    for start in range(0, gl.minimum(count, CAPACITY), BLOCK):
        a = gl.load(gathered + m[:, None] * CAPACITY + (start + slot)[None, :], mask=m_mask, other=0)
        b = gl.load(gathered + (tokens + n)[:, None] * CAPACITY + (start + slot)[None, :], mask=n_mask, other=0)
        result = _product(result, a, b)
    row_scale = gl.load(scale + n, mask=n < rows, other=0)
    for start in range(CAPACITY, count, BLOCK):
        mask = start + slot < count
        column = gl.load(outliers + start + slot, mask=mask, other=0)
        a = gl.load(x + m[:, None] * x_stride + column[None, :], mask=m_mask & mask[None, :], other=0)
        code = gl.load(weight + n[:, None] * columns + column[None, :], mask=n_mask & mask[None, :], other=0)
        b = (code.to(gl.float32) * row_scale[:, None] * (1 / 127)).to(a.dtype)
        result = _product(result, a, b)
    return result


@gluon.jit(do_not_specialize=["tokens"])
def _matmul_hopper(
    codes, weight, y, absmax, scale, bias, x, x_stride, weight_data, outliers, gathered, tokens, rows, columns,
    ADD: gl.constexpr, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr, BLOCK_K: gl.constexpr, GROUP: gl.constexpr,
    CAPACITY: gl.constexpr, OUTLIER_BLOCK: gl.constexpr, STAGES: gl.constexpr, WARPS: gl.constexpr,
):  # fmt: skip
    # Triton knows no wider instruction for 8-bit integers
    WIDTH: gl.constexpr = 128 if BLOCK_N > 128 else BLOCK_N
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, WIDTH, 32])
    RESULT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, WIDTH, 16])
    STORE: gl.constexpr = gl.BlockedLayout([1, 8], [2, 16], [WARPS, 1], [1, 0])
    a = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_M, BLOCK_K], codes.layout)
    b = gl.allocate_shared_memory(gl.int8, [STAGES, BLOCK_N, BLOCK_K], weight.layout)
    arrived = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(arrived.index(i), count=1)

    programs = gl.num_programs(0)
    tiles = gl.cdiv(tokens, BLOCK_M) * gl.cdiv(rows, BLOCK_N)
    blocks = gl.cdiv(columns, BLOCK_K)
    steps = gl.cdiv(tiles - gl.program_id(0), programs) * blocks
    for ahead in gl.static_range(STAGES - 1):
        _copy(
            ahead, steps, blocks, codes, weight, a, b, arrived, tokens, rows, BLOCK_M, BLOCK_N, BLOCK_K, GROUP, STAGES
        )

    step = 0
    for tile in range(gl.program_id(0), tiles, programs):
        sums = gl.zeros((BLOCK_M, BLOCK_N), gl.int32, SUMS)
        for _ in range(blocks):
            slot = step % STAGES
            mbarrier.wait(arrived.index(slot), step // STAGES & 1)
            sums = warpgroup_mma(a.index(slot), b.index(slot).permute((1, 0)), sums, is_async=True)
            # with one product in flight the one before is done, and its shared memory free for the next copy
            sums = warpgroup_mma_wait(1, deps=(sums,))
            _copy(
                step + STAGES - 1, steps, blocks, codes, weight, a, b, arrived, tokens, rows,
                BLOCK_M, BLOCK_N, BLOCK_K, GROUP, STAGES,
            )  # fmt: skip
            step += 1
        sums = warpgroup_mma_wait(0, deps=(sums,))

        first_m, first_n = _place(tile, tokens, rows, BLOCK_M, BLOCK_N, GROUP)
        m = first_m + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, SUMS))
        n = first_n + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, SUMS))
        row_scale = gl.load(absmax + m, mask=m < tokens, other=0)
        column_scale = gl.load(scale + n, mask=n < rows, other=0)
        result = sums.to(gl.float32) * (row_scale[:, None] * column_scale[None, :]) * (1 / 16129)
        if outliers is not None:
            result = gl.convert_layout(result, RESULT, assert_trivial=True)
            result = _plus_outliers(
                result, first_m, first_n, x, x_stride, weight_data, scale, outliers, gathered, tokens, rows,
                columns, BLOCK_M, BLOCK_N, CAPACITY, OUTLIER_BLOCK, WARPS,
            )  # fmt: skip
            result = gl.convert_layout(result, SUMS, assert_trivial=True)
        if bias is not None:
            result += gl.load(bias + n, mask=n < rows, other=0).to(gl.float32)[None, :]
        m = first_m + gl.arange(0, BLOCK_M, layout=gl.SliceLayout(1, STORE))
        n = first_n + gl.arange(0, BLOCK_N, layout=gl.SliceLayout(0, STORE))
        y_tile = y + m.to(gl.int64)[:, None] * rows + n[None, :]
        mask = (m < tokens)[:, None] & (n < rows)[None, :]
        if ADD:
            before = gl.convert_layout(gl.load(y_tile, mask=mask, other=0), SUMS)
            result += before.to(gl.float32)
        gl.store(y_tile, gl.convert_layout(result.to(y.dtype.element_ty), STORE), mask=mask)


_launch_matmul_hopper = Launcher(_matmul_hopper)


def matmul_hopper(
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
    """As ``int8_matmul.matmul``, for inputs of 16 bit and columns in multiples of 16."""
    (tokens, columns), rows = codes.shape, weight.shape[0]
    tiles = ceil_div(tokens, config.block_m) * ceil_div(rows, config.block_n)
    programs = min(tiles, config.persistent * processors(codes.device)) if config.persistent else tiles
    x, x_stride, listed, gathered = (x, x.stride(0), *outliers) if outliers else (None, 0, None, None)
    _launch_matmul_hopper(
        programs,
        matmul_key(codes, weight, y, absmax, scale, bias, x, outliers, config, add),
        _descriptor(codes, config.block_m, config.block_k),
        _descriptor(weight, config.block_n, config.block_k),
        y, absmax, scale, bias, x, x_stride, weight, listed, gathered, tokens, rows, columns,
        add, config.block_m, config.block_n, config.block_k, config.group, OUTLIER_CAPACITY, OUTLIER_BLOCK,
        config.stages, config.warps,
        num_warps=config.warps,
    )  # fmt: skip


def _descriptor(tensor: torch.Tensor, block_rows: int, block_columns: int) -> TensorDescriptor:
    """Of a contiguous matrix of int8 that begins at a multiple of 16 bytes."""
    descriptor = TensorDescriptor.__new__(TensorDescriptor)
    vars(descriptor).update(_described(*tensor.shape, block_rows, block_columns), base=tensor)
    return descriptor


@functools.lru_cache(maxsize=4096)
def _described(rows: int, columns: int, block_rows: int, block_columns: int) -> dict:
    """The attributes of a descriptor; to check them again at each launch would take as long as the launch."""
    block = [block_rows, block_columns]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.int8)
    like = torch.empty(rows, columns, dtype=torch.int8)
    return vars(TensorDescriptor.from_tensor(like, block, layout)) | {"base": None}


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a card."""
    return torch.cuda.get_device_properties(device).multi_processor_count
