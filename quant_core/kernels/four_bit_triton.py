"""The Triton kernels behind :mod:`.four_bit`. Importing this needs Triton.

A thread reads a word of eight packed weights and writes them as one vector, so that reads and writes of a warp lie side
by side. The table of 16 code values is read from shared memory, where any 16 values are in different banks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .launch import Launcher, aligned, ceil_div

WORD = tl.constexpr(8)  # weights in an int32
STATISTICS = tl.constexpr(256)  # absmax that share a scale, when nested


@dataclass(frozen=True)
class Unpack:
    """``words`` of eight weights a program; ``gather``: the code table is read from shared memory, not through L1."""

    words: int = 512
    warps: int = 4
    gather: bool = True


@dataclass(frozen=True)
class UnpackAdd:
    """A tile of ``rows`` by ``columns`` weights a program."""

    rows: int = 64
    columns: int = 128
    warps: int = 4
    gather: bool = True


DEFAULT, DEFAULT_ADD = Unpack(), UnpackAdd()


@triton.jit
def packed_words(packed, at, inside):
    """int32 number ``at`` of packed bytes: eight weights each."""
    return tl.load(packed.to(tl.pointer_type(tl.int32)) + at, mask=inside, other=0)


@triton.jit
def block_absmax(absmax, absmax_8bit, absmax_code, absmax_offset, block, inside, NESTED: tl.constexpr):
    """The float32 absmax of each ``block``; to be compiled without fused multiply-add, as bitsandbytes rounds twice."""
    if NESTED:
        index = tl.load(absmax_8bit + block, mask=inside, other=0).to(tl.int32)
        scale = tl.load(absmax + block // STATISTICS, mask=inside, other=0.0)
        return tl.load(absmax_code + index) * scale + tl.load(absmax_offset)
    return tl.load(absmax + block, mask=inside, other=0.0)


@triton.jit
def code_values(words, code, SIZE: tl.constexpr, GATHER: tl.constexpr):
    """The code values ``(SIZE, 8)`` of ``words (SIZE,)``: in each byte, the first weight is in the high nibble."""
    shift = (tl.arange(0, WORD) ^ 1) * 4
    nibbles = (words[:, None] >> shift[None, :]) & 15
    if GATHER:
        table = tl.load(code + tl.arange(0, 16))
        return tl.reshape(tl.gather(table, tl.reshape(nibbles, (SIZE * WORD,)), 0), (SIZE, WORD))
    return tl.load(code + nibbles)


@triton.jit
def _unpack(
    packed, absmax, absmax_8bit, absmax_code, absmax_offset, code, out, words,
    BLOCKSIZE: tl.constexpr, NESTED: tl.constexpr, SIZE: tl.constexpr, GATHER: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    inside = at < words
    word = packed_words(packed, at, inside)
    scale = block_absmax(
        absmax, absmax_8bit, absmax_code, absmax_offset, at // (BLOCKSIZE // WORD), inside, NESTED
    )  # fmt: skip
    weight = code_values(word, code, SIZE, GATHER) * scale[:, None]
    to = at[:, None] * WORD + tl.arange(0, WORD)[None, :]
    tl.store(out + to, weight.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _unpack_add(
    packed, absmax, absmax_8bit, absmax_code, absmax_offset, code, up, down, out, rows, columns,
    BLOCKSIZE: tl.constexpr, NESTED: tl.constexpr, RANK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    GATHER: tl.constexpr,
):  # fmt: skip
    across = tl.cdiv(columns, COLUMNS)
    first_row = tl.program_id(0) // across * ROWS
    first_column = tl.program_id(0) % across * COLUMNS
    row = first_row + tl.arange(0, ROWS)
    column = first_column + tl.arange(0, COLUMNS)
    rank = tl.arange(0, RANK)
    left = tl.load(up + row[:, None] * RANK + rank[None, :], mask=row[:, None] < rows, other=0.0)
    right = tl.load(down + rank[:, None] * columns + column[None, :], mask=column[None, :] < columns, other=0.0)
    update = tl.dot(left, right)

    SIZE: tl.constexpr = ROWS * COLUMNS // WORD
    i = tl.arange(0, SIZE)
    word_row = first_row + i // (COLUMNS // WORD)
    word_column = first_column // WORD + i % (COLUMNS // WORD)
    inside = (word_row < rows) & (word_column < columns // WORD)
    at = word_row * (columns // WORD) + word_column
    word = packed_words(packed, at, inside)
    scale = block_absmax(
        absmax, absmax_8bit, absmax_code, absmax_offset, at // (BLOCKSIZE // WORD), inside, NESTED
    )  # fmt: skip
    weight = tl.reshape(code_values(word, code, SIZE, GATHER) * scale[:, None], (ROWS, COLUMNS)) + update
    to = row[:, None] * columns + column[None, :]
    within = (row[:, None] < rows) & (column[None, :] < columns)
    tl.store(out + to, weight.to(out.dtype.element_ty), mask=within)


_launch_unpack = Launcher(_unpack)
_launch_unpack_add = Launcher(_unpack_add)


def unpack(packed, statistics, code, out: torch.Tensor, blocksize: int, launch: Unpack | None = None):
    """Fill ``out`` from contiguous ``packed`` bytes.

    ``statistics``: absmax, absmax_8bit, absmax_code, absmax_offset; the last three may be None.
    """
    launch = launch or DEFAULT
    count, nested, pointers = out.numel() // 8, statistics[1] is not None, (packed, *_present(statistics), code, out)
    key = (out.device.index, out.dtype, count, blocksize, nested, launch) if aligned(*pointers) else None
    _launch_unpack(
        ceil_div(count, launch.words), key, *pointers, count, blocksize, nested, launch.words, launch.gather,
        num_warps=launch.warps, enable_fp_fusion=False,
    )  # fmt: skip


def unpack_add(packed, statistics, code, up, down, out: torch.Tensor, blocksize: int, launch: UnpackAdd | None = None):
    """Fill ``out`` with the unpacked weight plus ``up @ down``."""
    launch = launch or DEFAULT_ADD
    (rows, columns), rank, nested = out.shape, up.shape[1], statistics[1] is not None
    tiles = ceil_div(rows, launch.rows) * ceil_div(columns, launch.columns)
    pointers = packed, *_present(statistics), code, up, down, out
    types = out.device.index, out.dtype, up.dtype, down.dtype
    key = (types, rows, columns, rank, blocksize, nested, launch) if aligned(*pointers) else None
    _launch_unpack_add(
        tiles, key, *pointers, rows, columns,
        blocksize, nested, rank, launch.rows, launch.columns, launch.gather,
        num_warps=launch.warps, enable_fp_fusion=False,
    )  # fmt: skip


def _present(statistics) -> tuple[torch.Tensor, ...]:
    # what is not read still has to be a pointer
    return tuple(statistics[0] if tensor is None else tensor for tensor in statistics)
