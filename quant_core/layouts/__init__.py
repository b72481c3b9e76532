"""Packed weights as tensors: they report the shape and dtype of the weight they stand for."""

from .four_bit import FourBitLayout
from .int8 import Int8Layout
from .packed import (
    Parts,
    concatenate,
    dequantize,
    is_packed,
    nbytes,
    packed_nbytes,
    plain_tensors,
    quantize,
    rows,
    swap_halves,
)

__all__ = [
    "FourBitLayout",
    "Int8Layout",
    "Parts",
    "concatenate",
    "dequantize",
    "is_packed",
    "nbytes",
    "packed_nbytes",
    "plain_tensors",
    "quantize",
    "rows",
    "swap_halves",
]
