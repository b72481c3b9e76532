"""What the rest of the project asks of a packed weight, whatever its layout."""

from __future__ import annotations

import torch
from comfy_kitchen.tensor import QuantizedTensor

from ..config import QuantConfig
from .four_bit import FourBitLayout
from .int8 import Int8Layout

LAYOUTS = (FourBitLayout.NAME, Int8Layout.NAME)


def quantize(weight: torch.Tensor, config: QuantConfig) -> torch.Tensor:
    """Pack ``weight (rows, columns)`` on its own device; precision ``none`` gives it back as it is.

    >>> packed = quantize(torch.randn(128, 256), QuantConfig("nf4"))
    >>> packed.shape, nbytes(packed)
    (torch.Size([128, 256]), 18432)
    """
    if config.is_four_bit:
        return QuantizedTensor.from_float(
            weight,
            FourBitLayout.NAME,
            quant_type=config.precision,
            blocksize=config.blocksize,
            double_quant=config.double_quant,
        )
    if config.precision == "int8":
        return QuantizedTensor.from_float(weight, Int8Layout.NAME, threshold=config.int8_threshold)
    return weight


def is_packed(tensor: torch.Tensor | None) -> bool:
    """Whether ``tensor`` is one of this project's packed weights."""
    return isinstance(tensor, QuantizedTensor) and tensor._layout_cls in LAYOUTS


def dequantize(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``weight`` as a plain tensor of ``dtype``, packed or not."""
    if is_packed(weight):
        return weight.layout_cls.dequantize(weight._qdata, weight._params, dtype)
    return weight.to(dtype)


def plain_tensors(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors that hold the data: packed bytes and statistics, or the tensor itself."""
    return tensor.layout_cls.get_plain_tensors(tensor) if is_packed(tensor) else (tensor,)


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes that ``tensor`` really takes, statistics included. (``QuantizedTensor.nbytes`` leaves them out.)"""
    return sum(part.nbytes for part in plain_tensors(tensor))
