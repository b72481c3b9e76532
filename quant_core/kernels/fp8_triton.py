"""The Triton kernels behind :mod:`.fp8`. Importing this needs Triton. A program makes one row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .four_bit_triton import WORD, _present, block_absmax, code_values, packed_words
from .launch import Launcher, aligned, power_of_2

LARGEST = tl.constexpr(448.0)  # of float8_e4m3fn
SMALLEST = tl.constexpr(1e-30)  # of a row's absmax: its reciprocal stays finite


@dataclass(frozen=True)
class UnpackRows:
    """A row is a program, which takes ``words`` of eight weights at a time."""

    words: int = 128
    warps: int = 2


DEFAULT = UnpackRows()


@triton.jit
def _unpack_rows(
    packed, absmax, absmax_8bit, absmax_code, absmax_offset, code, out, scale,
    BLOCKSIZE: tl.constexpr, NESTED: tl.constexpr, BLOCKS: tl.constexpr, WORDS: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """A row of ``WORDS``, ``CHUNK`` at a time: few enough for many programs to share a multiprocessor's registers."""
    row = tl.program_id(0)
    blocks: tl.constexpr = WORDS * WORD // BLOCKSIZE
    block = tl.arange(0, BLOCKS)
    values = block_absmax(
        absmax, absmax_8bit, absmax_code, absmax_offset, row * blocks + block, block < blocks, NESTED
    )  # fmt: skip
    # nested ones have their offset everywhere
    largest = tl.max(tl.where(block < blocks, tl.abs(values), 0.0), axis=0)
    largest = tl.maximum(largest, SMALLEST)
    tl.store(scale + row, tl.div_rn(largest, LARGEST))
    factor = tl.div_rn(LARGEST, largest)
    for start in tl.static_range(0, WORDS, CHUNK):
        column = start + tl.arange(0, CHUNK)
        inside = column < WORDS
        at = row * WORDS + column
        word = packed_words(packed, at, inside)
        factors = factor * block_absmax(
            absmax, absmax_8bit, absmax_code, absmax_offset, at // (BLOCKSIZE // WORD), inside, NESTED
        )  # fmt: skip
        weight = code_values(word, code, CHUNK, True) * factors[:, None]
        to = at[:, None] * WORD + tl.arange(0, WORD)[None, :]
        tl.store(out + to, weight.to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit
def _quantize_rows(x, out, scale, columns, stride, SIZE: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, SIZE)
    inside = column < columns
    values = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    largest = tl.maximum(tl.max(tl.abs(values), axis=0), SMALLEST)
    tl.store(scale + row, tl.div_rn(largest, LARGEST))
    values = values * tl.div_rn(LARGEST, largest)
    tl.store(out + row * columns + column, values.to(out.dtype.element_ty), mask=inside)


_launch_unpack_rows = Launcher(_unpack_rows)
_launch_quantize_rows = Launcher(_quantize_rows)


def unpack_rows(
    packed, statistics, code, out: torch.Tensor, scale: torch.Tensor, blocksize: int, launch: UnpackRows | None = None
):
    """Fill ``out (rows, columns)`` and ``scale (rows, 1)``."""
    launch = launch or DEFAULT
    rows, columns = out.shape
    size, nested = columns // 8, statistics[1] is not None
    pointers = packed, *_present(statistics), code, out, scale
    key = (out.device.index, out.dtype, rows, columns, blocksize, nested, launch) if aligned(*pointers) else None
    _launch_unpack_rows(
        rows, key, *pointers, blocksize, nested, power_of_2(columns // blocksize), size,
        min(launch.words, power_of_2(size)),
        num_warps=launch.warps, enable_fp_fusion=False,
    )  # fmt: skip


def quantize_rows(x: torch.Tensor, out: torch.Tensor, scale: torch.Tensor, warps: int = 0):
    """Fill ``out (rows, columns)`` and ``scale (rows, 1)`` from ``x``, whose last stride is 1."""
    rows, columns = x.shape
    size, stride = power_of_2(columns), x.stride(0)
    warps = warps or (4 if size <= 4096 else 8)
    key = (x.device.index, x.dtype, out.dtype, rows, columns, stride, warps) if aligned(x, out, scale) else None
    _launch_quantize_rows(
        rows, key, x, out, scale, columns, stride, size, num_warps=warps, enable_fp_fusion=False
    )  # fmt: skip
