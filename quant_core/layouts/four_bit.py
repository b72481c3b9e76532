"""NF4 and FP4: blocks of weights that share one absmax, two weights to a byte."""

from __future__ import annotations

import json
from dataclasses import dataclass

import bitsandbytes.functional as bnb
import torch
from comfy_kitchen.tensor import BaseLayoutParams, QuantizedLayout, QuantizedTensor, register_layout_class

NESTED_BLOCKSIZE = 256  # fixed by bitsandbytes' fused kernels


class FourBitLayout(QuantizedLayout):
    """bitsandbytes' 4-bit format.

    ``qdata`` is uint8 ``(ceil(rows * columns / 2), 1)``, first weight in the high nibble. A block of ``blocksize``
    consecutive weights shares one absmax; a weight is ``absmax * code[nibble]``.
    """

    NAME = "QuantFlux4bit"

    @dataclass(frozen=True)
    class Params(BaseLayoutParams):
        """``scale`` holds the float32 absmax ``(blocks,)``.

        Nested (double quantization): the absmax is ``absmax_code[absmax_8bit] * scale + absmax_offset``, where
        ``absmax_8bit`` is uint8 ``(blocks,)``, ``absmax_code`` float32 ``(256,)``, ``absmax_offset`` a float32
        scalar, and ``scale`` has one value for 256 of them.
        """

        quant_type: str
        blocksize: int
        absmax_8bit: torch.Tensor | None = None
        absmax_code: torch.Tensor | None = None
        absmax_offset: torch.Tensor | None = None

        @property
        def nested(self) -> bool:
            return self.absmax_8bit is not None

        def _tensor_fields(self) -> list[str]:
            return ["scale", "absmax_8bit", "absmax_code", "absmax_offset"] if self.nested else ["scale"]

    @classmethod
    def quantize(
        cls, tensor: torch.Tensor, quant_type: str = "nf4", blocksize: int = 64, double_quant: bool = False
    ) -> tuple[torch.Tensor, Params]:
        """Pack a 16- or 32-bit weight ``(rows, columns)`` on its own device."""
        packed, state = bnb.quantize_4bit(
            tensor.contiguous(), blocksize=blocksize, compress_statistics=double_quant, quant_type=quant_type
        )
        nested = {}
        if state.nested:
            nested = {
                "absmax_8bit": state.absmax,
                "absmax_code": state.state2.code,
                "absmax_offset": state.offset.float(),
            }
        params = cls.Params(
            scale=state.state2.absmax if state.nested else state.absmax,
            orig_dtype=tensor.dtype,
            orig_shape=tuple(tensor.shape),
            quant_type=quant_type,
            blocksize=blocksize,
            **nested,
        )
        return packed, params

    @classmethod
    def absmax(cls, params: Params) -> torch.Tensor:
        """The float32 absmax of every block ``(blocks,)``, nested or not."""
        if not params.nested:
            return params.scale
        expanded = torch.ops.bitsandbytes.dequantize_blockwise(
            params.absmax_8bit, params.scale, params.absmax_code, NESTED_BLOCKSIZE, torch.float32
        )
        return expanded + params.absmax_offset

    @classmethod
    def dequantize(cls, qdata: torch.Tensor, params: Params, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight ``(rows, columns)`` in ``dtype``, by default the dtype it was quantized from."""
        return torch.ops.bitsandbytes.dequantize_4bit(
            qdata,
            cls.absmax(params),
            params.blocksize,
            params.quant_type,
            params.orig_shape,
            dtype or params.orig_dtype,
        )

    @classmethod
    def linear(cls, x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
        """``x (..., columns)`` times the weight, in the dtype of ``x``.

        bitsandbytes chooses between its fused kernel (few rows of ``x``) and dequantize-then-multiply.
        """
        params = weight._params
        if x.shape[-1] % params.blocksize:
            # blocks run across rows: the fused kernel would warn at every call and take this path anyway
            return torch.nn.functional.linear(x, cls.dequantize(weight._qdata, params, x.dtype), bias)
        return torch.ops.bitsandbytes.gemm_4bit(
            x,
            weight._qdata,
            params.orig_shape,
            params.scale,
            params.blocksize,
            params.quant_type,
            bias,
            params.absmax_8bit,
            params.absmax_code,
            params.absmax_offset,
        )

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[torch.Tensor, ...]:
        params = qtensor._params
        return (qtensor._qdata, *(getattr(params, field) for field in params._tensor_fields()))

    @classmethod
    def state_dict_tensors(cls, qdata: torch.Tensor, params: Params) -> dict[str, torch.Tensor]:
        """bitsandbytes' own names, as in every pre-quantized file (``QuantState.as_dict(packed=True)``)."""
        state = {
            "quant_type": params.quant_type,
            "blocksize": params.blocksize,
            "dtype": str(params.orig_dtype).removeprefix("torch."),
            "shape": list(params.orig_shape),
        }
        tensors = {
            "": qdata,
            ".absmax": params.absmax_8bit if params.nested else params.scale,
            ".quant_map": bnb.get_4bit_type(params.quant_type, device=qdata.device),
        }
        if params.nested:
            state |= {
                "nested_blocksize": NESTED_BLOCKSIZE,
                "nested_dtype": "float32",
                "nested_offset": params.absmax_offset.item(),
            }
            tensors |= {".nested_absmax": params.scale, ".nested_quant_map": params.absmax_code}
        description = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
        return tensors | {f".quant_state.bitsandbytes__{params.quant_type}": description}


register_layout_class(FourBitLayout.NAME, FourBitLayout)
