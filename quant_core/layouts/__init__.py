"""Packed weights as tensors: they report the shape and dtype of the weight they stand for."""

from .four_bit import FourBitLayout
from .int8 import Int8Layout
from .packed import dequantize, is_packed, nbytes, plain_tensors, quantize

__all__ = ["FourBitLayout", "Int8Layout", "dequantize", "is_packed", "nbytes", "plain_tensors", "quantize"]
