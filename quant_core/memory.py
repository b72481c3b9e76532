"""Bytes of a model: before loading, from its header, and after."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from .config import QuantConfig
from .layouts import nbytes
from .layouts.four_bit import NESTED_BLOCKSIZE
from .source import Source

FLOAT32 = 4


def packed_nbytes(shape: tuple[int, int], config: QuantConfig) -> int:
    """Bytes that a weight ``(rows, columns)`` takes once ``config`` has packed it, statistics included."""
    rows, columns = shape
    if config.precision == "int8":
        return rows * columns + FLOAT32 * rows
    blocks = math.ceil(rows * columns / config.blocksize)
    packed = math.ceil(rows * columns / 2)
    if not config.double_quant:
        return packed + FLOAT32 * blocks
    # a byte for each absmax; for each 256 of them a float32; a table of 256 and an offset
    return packed + blocks + FLOAT32 * (math.ceil(blocks / NESTED_BLOCKSIZE) + 256 + 1)


def planned_nbytes(source: Source) -> int:
    """Bytes that the model of ``source`` will take."""
    total = 0
    for name, tensor in source.tensors.items():
        total += packed_nbytes(tensor.shape, source.config) if name in source.packed else tensor.nbytes
    return total


def largest_weight_nbytes(source: Source) -> int:
    """Bytes of the largest tensor at 16 bit: what quantizing, or multiplying by it, needs besides the model."""
    return max(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in source.tensors.values())


def model_nbytes(tensors: Iterable[torch.Tensor]) -> tuple[int, int]:
    """(bytes now, bytes at 16 bit) of a model's tensors."""
    now = at_16_bit = 0
    for tensor in tensors:
        now += nbytes(tensor)
        at_16_bit += 2 * tensor.numel()
    return now, at_16_bit


def readable(number_of_bytes: float) -> str:
    """``number_of_bytes`` in MiB or GiB.

    >>> readable(7_194_070_220)
    '6.70 GiB'
    """
    gib = number_of_bytes / 2**30
    return f"{gib:.2f} GiB" if gib >= 1 else f"{number_of_bytes / 2**20:.1f} MiB"
