"""What the rest of the project asks of a packed weight, whatever its layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from comfy_kitchen.tensor import BaseLayoutParams, QuantizedLayout, QuantizedTensor

from ..config import QuantConfig
from .four_bit import FourBitLayout
from .int8 import Int8Layout

LAYOUTS = (FourBitLayout.NAME, Int8Layout.NAME)


def quantize(weight: torch.Tensor, config: QuantConfig, pause: Callable[[], None] | None = None) -> torch.Tensor:
    """Pack ``weight (rows, columns)`` on its own device; precision ``none`` gives it back as it is.

    Args:
        pause: called now and then where packing one weight takes seconds; what it raises ends it.

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
            pause=pause,
        )
    if config.precision == "int8":
        return QuantizedTensor.from_float(weight, Int8Layout.NAME, threshold=config.int8_threshold)
    return weight


def packed_nbytes(shape: tuple[int, int], config: QuantConfig) -> int:
    """Bytes that a weight ``(rows, columns)`` takes once ``config``, which is not ``none``, has packed it."""
    if config.precision == "int8":
        return Int8Layout.nbytes_of(shape)
    return FourBitLayout.nbytes_of(shape, config.blocksize, config.double_quant)


@dataclass(eq=False)
class Parts:
    """What products need of a packed weight, under the same names, in an object that is no tensor.

    Before each call of a compiled graph, torch has Python compare what describes each QuantizedTensor, and take it
    apart. The first alone was 35 µs a weight (profiled with torch 2.11 on an H200's host, 2026-11-30).
    """

    _qdata: torch.Tensor
    _params: BaseLayoutParams
    _layout_cls: str
    layout_cls: type[QuantizedLayout]

    @classmethod
    def of(cls, weight: QuantizedTensor) -> Parts:
        return cls(weight._qdata, weight._params, weight._layout_cls, weight.layout_cls)

    @property
    def device(self) -> torch.device:
        return self._qdata.device


def is_packed(tensor: torch.Tensor | Parts | None) -> bool:
    """Whether ``tensor`` is one of this project's packed weights, or the parts of one."""
    return isinstance(tensor, (QuantizedTensor, Parts)) and tensor._layout_cls in LAYOUTS


def dequantize(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``weight`` as a plain tensor of ``dtype``, packed or not."""
    if is_packed(weight):
        return weight.layout_cls.dequantize(weight._qdata, weight._params, dtype)
    return weight.to(dtype)


def concatenate(weights: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The rows of several weights under each other: packed weights stay packed, and dequantize to the same bits.

    Returns:
        None where that cannot be: some are packed and others not, or their blocks do not fit together.
    """
    if len(weights) == 1:
        return weights[0]
    if not any(map(is_packed, weights)):
        return torch.cat(tuple(weights))
    if not all(map(is_packed, weights)) or len({weight._layout_cls for weight in weights}) > 1:
        return None
    joined = weights[0].layout_cls.concatenate(weights)
    return joined and QuantizedTensor(joined[0], weights[0]._layout_cls, joined[1])


def rows(weight: torch.Tensor, start: int, stop: int) -> torch.Tensor | None:
    """Rows ``start`` to ``stop`` of a weight, packed as it is; None where a quantization block would be cut."""
    if not is_packed(weight):
        return weight[start:stop]
    part = weight.layout_cls.rows(weight, start, stop)
    return part and QuantizedTensor(part[0], weight._layout_cls, part[1])


def swap_halves(weight: torch.Tensor) -> torch.Tensor | None:
    """``weight`` with the two halves of its rows exchanged, packed as it is; None where a block would be cut."""
    middle, end = weight.shape[0] // 2, weight.shape[0]
    halves = rows(weight, middle, end), rows(weight, 0, middle)
    return None if any(half is None for half in halves) else concatenate(halves)


def plain_tensors(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors that hold the data: packed bytes and statistics, or the tensor itself."""
    return tensor.layout_cls.get_plain_tensors(tensor) if is_packed(tensor) else (tensor,)


def nbytes(tensor: torch.Tensor) -> int:
    """Bytes that ``tensor`` really takes, statistics included. (``QuantizedTensor.nbytes`` leaves them out.)"""
    return sum(part.nbytes for part in plain_tensors(tensor))
