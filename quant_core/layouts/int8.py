"""LLM.int8(): rows of 8-bit weights with one scale each, outlier columns multiplied in 16 bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from comfy_kitchen.tensor import BaseLayoutParams, QuantizedLayout, QuantizedTensor, register_layout_class

from ..errors import ConfigError
from ..kernels.int8 import int8_add_linear, int8_linear

MIN_COMPUTE_CAPABILITY = (7, 5)  # Turing: the first with int8 tensor cores


class Int8Layout(QuantizedLayout):
    """bitsandbytes' 8-bit format: ``qdata`` int8 ``(rows, columns)``, weight = ``qdata * scale / 127``."""

    NAME = "QuantFluxInt8"

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """``scale`` holds the float32 absmax of each row ``(rows,)``, called SCB by bitsandbytes."""

        threshold: float = 6.0

    @classmethod
    def quantize(cls, tensor: torch.Tensor, threshold: float = 6.0) -> tuple[torch.Tensor, Params]:
        """Pack a weight ``(rows, columns)`` on its own device. bitsandbytes rounds it to float16 first."""
        qdata, scale, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(tensor.to(torch.float16).contiguous())
        return qdata, cls.Params(
            scale=scale, orig_dtype=tensor.dtype, orig_shape=tuple(tensor.shape), threshold=threshold
        )

    @classmethod
    def dequantize(cls, qdata: torch.Tensor, params: Params, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight ``(rows, columns)`` in ``dtype``, by default the dtype it was quantized from."""
        weight = torch.ops.bitsandbytes.int8_vectorwise_dequant(qdata, params.scale)
        return weight.to(dtype or params.orig_dtype)

    @classmethod
    def linear(cls, x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``x (..., columns)`` times the weight by LLM.int8() arithmetic, in the dtype of ``x``.

        Inputs beyond float16's range are limited to it before they are quantized; with a threshold they are outliers
        and multiplied unlimited.
        """
        params = weight._params
        return int8_linear(x, weight._qdata, params.scale, bias, params.threshold)

    @classmethod
    def add_linear(cls, y: torch.Tensor, x: torch.Tensor, weight: QuantizedTensor) -> torch.Tensor:
        """``y (..., rows)``, which is overwritten, plus ``x (..., columns)`` times the weight."""
        params = weight._params
        int8_add_linear(y, x, weight._qdata, params.scale, params.threshold)
        return y

    @classmethod
    def concatenate(cls, weights: Sequence[QuantizedTensor]) -> tuple[torch.Tensor, Params] | None:
        """The rows of several weights under each other: exact. None where their columns or thresholds differ."""
        params = [weight._params for weight in weights]
        if len({(p.orig_shape[1], p.threshold) for p in params}) > 1:
            return None
        rows = sum(p.orig_shape[0] for p in params)
        joined = dataclasses.replace(
            params[0], scale=torch.cat([p.scale for p in params]), orig_shape=(rows, params[0].orig_shape[1])
        )
        return torch.cat([weight._qdata for weight in weights]), joined

    @classmethod
    def rows(cls, weight: QuantizedTensor, start: int, stop: int) -> tuple[torch.Tensor, Params]:
        """Rows ``start`` to ``stop`` of a weight: exact."""
        params = weight._params
        shape = (stop - start, params.orig_shape[1])
        return weight._qdata[start:stop], dataclasses.replace(params, scale=params.scale[start:stop], orig_shape=shape)

    @staticmethod
    def nbytes_of(shape: tuple[int, int]) -> int:
        """Bytes that a weight ``(rows, columns)`` takes once it is packed, row scales included."""
        return shape[0] * shape[1] + 4 * shape[0]

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[torch.Tensor, ...]:
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: torch.Tensor, params: Params) -> dict[str, torch.Tensor]:
        """The packed bytes and their row scales. bitsandbytes' files name the scales ``SCB``, beside the weight."""
        return {"": qdata, ".SCB": params.scale}


def require_int8(device: torch.device, capability: tuple[int, int] | None = None) -> None:
    """Check that ``device`` can multiply in 8 bit.

    Args:
        capability: compute capability to check; by default that of ``device``.

    Raises:
        ConfigError: an NVIDIA card older than Turing.
    """
    if device.type != "cuda" or torch.version.hip:
        return
    capability = capability or torch.cuda.get_device_capability(device)
    if capability < MIN_COMPUTE_CAPABILITY:
        raise ConfigError(
            f"precision int8 needs compute capability 7.5 (Turing) or newer, but {device} has "
            f"{capability[0]}.{capability[1]}. Choose precision nf4, which runs on every card."
        )


register_layout_class(Int8Layout.NAME, Int8Layout)
