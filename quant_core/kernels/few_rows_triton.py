"""The Triton kernel behind :mod:`.few_rows`. Importing this needs Triton."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .few_rows import COLUMNS
from .four_bit_triton import WORD, _present, block_absmax, code_values, packed_words
from .launch import Launcher, aligned, ceil_div


@dataclass(frozen=True)
class Multiply:
    """``rows`` of the weight a program, ``words`` of eight weights of each at a time.

    ``gather``: the code table is read from shared memory, not through L1.
    """

    rows: int = 4
    words: int = COLUMNS // 8  # whole ones alone: no column is masked
    warps: int = 1
    gather: bool = True


DEFAULT = Multiply()


@triton.jit
def _multiply(
    x, packed, absmax, absmax_8bit, absmax_code, absmax_offset, code, bias, y, rows, columns,
    BLOCKSIZE: tl.constexpr, NESTED: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, GATHER: tl.constexpr,
):  # fmt: skip
    """One row of ``x`` times ``ROWS`` rows of the weight."""
    SIZE: tl.constexpr = ROWS * WORDS
    tiles = tl.cdiv(rows, ROWS)
    token = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * ROWS
    words = columns // WORD
    i = tl.arange(0, SIZE)
    row = first + i // WORDS
    inside = row < rows
    sums = tl.zeros((SIZE,), dtype=tl.float32)
    for start in range(0, words, WORDS):
        column = start + i % WORDS
        at = row * words + column
        word = packed_words(packed, at, inside)
        scale = block_absmax(
            absmax, absmax_8bit, absmax_code, absmax_offset, at // (BLOCKSIZE // WORD), inside, NESTED
        )  # fmt: skip
        values = tl.load(x + token * columns + column[:, None] * WORD + tl.arange(0, WORD)[None, :]).to(tl.float32)
        # the weights of a word share their absmax
        sums += tl.sum(code_values(word, code, SIZE, GATHER) * values, axis=1) * scale
    result = tl.sum(tl.reshape(sums, (ROWS, WORDS)), axis=1)
    row = first + tl.arange(0, ROWS)
    if bias is not None:
        result += tl.load(bias + row, mask=row < rows, other=0).to(tl.float32)
    tl.store(y + token * rows + row, result.to(y.dtype.element_ty), mask=row < rows)


_launch_multiply = Launcher(_multiply)


def multiply(x, packed, statistics, code, bias, y: torch.Tensor, blocksize: int, launch: Multiply | None = None):
    """Fill ``y (tokens, rows)``. ``statistics``: absmax, absmax_8bit, absmax_code, absmax_offset."""
    launch = launch or DEFAULT
    (tokens, rows), columns, nested = y.shape, x.shape[1], statistics[1] is not None
    pointers = x, packed, *_present(statistics), code
    types = y.device.index, y.dtype, None if bias is None else bias.dtype
    fast = aligned(*pointers, y) and (bias is None or aligned(bias))
    key = (types, tokens, rows, columns, blocksize, nested, launch) if fast else None
    _launch_multiply(
        tokens * ceil_div(rows, launch.rows), key, *pointers, bias, y, rows, columns,
        blocksize, nested, launch.rows, launch.words, launch.gather,
        num_warps=launch.warps,
    )  # fmt: skip
