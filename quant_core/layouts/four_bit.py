"""NF4 and FP4: blocks of weights that share one absmax, two weights to a byte."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import bitsandbytes.functional as bnb
import torch
from comfy_kitchen.tensor import BaseLayoutParams, QuantizedLayout, QuantizedTensor, register_layout_class

from ..kernels import triton_available
from ..kernels.few_rows import MAX_ROWS, can_multiply_few, few_rows_linear, few_rows_pay
from ..kernels.four_bit import FUSED_RANKS, NESTED_BLOCKSIZE, can_unpack, unpack_4bit
from ..kernels.fp8 import can_multiply, quantize_rows, scaled_mm, unpack_4bit_rows
from ..lora import LowRank

CPU_PIECE = 2**21  # numbers that a CPU packs at a time: about 0.1 s on one core (2026-11-25)
FUSED_ROWS = 48  # of inputs: up to about so many, bitsandbytes' fused kernel is the faster one


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

        @property
        def nested_statistics(self) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
            """What stands behind ``scale`` among the arguments of every kernel."""
            return self.absmax_8bit, self.absmax_code, self.absmax_offset

        def _tensor_fields(self) -> list[str]:
            return ["scale", "absmax_8bit", "absmax_code", "absmax_offset"] if self.nested else ["scale"]

    @classmethod
    def quantize(
        cls,
        tensor: torch.Tensor,
        quant_type: str = "nf4",
        blocksize: int = 64,
        double_quant: bool = False,
        pause: Callable[[], None] | None = None,
    ) -> tuple[torch.Tensor, Params]:
        """Pack a 16- or 32-bit weight ``(rows, columns)`` on its own device.

        Args:
            pause: called now and then where this takes long, on a CPU; what it raises ends the packing.
        """
        # blocks do not know of each other, and a piece is a whole number of the largest ones
        pieces = tensor.reshape(-1).split(CPU_PIECE) if tensor.device.type == "cpu" else [tensor.contiguous()]
        done = []
        for piece in pieces:
            if pause is not None:
                pause()
            done.append(bnb.quantize_4bit(piece, blocksize=blocksize, quant_type=quant_type))
        packed = done[0][0] if len(done) == 1 else torch.cat([data for data, _ in done])
        scale = done[0][1].absmax if len(done) == 1 else torch.cat([state.absmax for _, state in done])
        nested = {}
        if double_quant:
            # as bitsandbytes' compress_statistics does it
            offset = scale.mean()
            absmax_8bit, state = bnb.quantize_blockwise(scale - offset, blocksize=NESTED_BLOCKSIZE)
            nested = {"absmax_8bit": absmax_8bit, "absmax_code": state.code, "absmax_offset": offset.float()}
            scale = state.absmax
        params = cls.Params(
            scale=scale,
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
        # where blocks run across rows, bitsandbytes 0.50 takes wrong ones on a CPU with AVX-512: so all is one row
        across = params.orig_shape[1] % params.blocksize
        weight = torch.ops.bitsandbytes.dequantize_4bit(
            qdata,
            cls.absmax(params),
            params.blocksize,
            params.quant_type,
            (math.prod(params.orig_shape),) if across else params.orig_shape,
            dtype or params.orig_dtype,
        )
        return weight.view(params.orig_shape)

    @staticmethod
    def _has_kernel(device: torch.device, params: Params) -> bool:
        return triton_available(device) and can_unpack(params.orig_shape, params.blocksize)

    @staticmethod
    def _has_few_rows_kernel(x: torch.Tensor, params: Params) -> bool:
        few = 0 < x.numel() <= MAX_ROWS * x.shape[-1] and x.dtype.itemsize == 2
        return few and can_multiply_few(params.orig_shape, params.blocksize) and few_rows_pay(x.device)

    @staticmethod
    def _unpack(qdata: torch.Tensor, params: Params, dtype: torch.dtype, low_rank: LowRank | None) -> torch.Tensor:
        """The weight ``(rows, columns)`` plus the LoRA, rounded to ``dtype`` once."""
        update = (None, None) if low_rank is None else (low_rank.up, low_rank.down)
        return unpack_4bit(*_first_arguments(qdata, params), dtype, *params.nested_statistics, *update)

    @classmethod
    def linear(
        cls,
        x: torch.Tensor,
        weight: QuantizedTensor,
        bias: torch.Tensor | None,
        low_rank: LowRank | None = None,
        float8: bool = False,
    ) -> torch.Tensor:
        """``x (..., columns)`` times the weight, in the dtype of ``x``.

        Few rows of ``x`` are multiplied by bitsandbytes' fused kernel, the fewest by our own where that was measured to
        be faster. For many rows the weight is unpacked first, by our own kernel where Triton runs, to the same bits.
        The LoRA is added meanwhile where its rank fits on the chip: a branch beside the weight would move the output
        once more.

        Args:
            float8: multiply in float8 where there are many rows, the device can and ``x`` is bfloat16. A LoRA stays
                in 16 bit.
        """
        params = weight._params
        if not x.numel():
            # an H200's process ended in bitsandbytes' kernel (2026-11-30)
            return x.new_empty(*x.shape[:-1], params.orig_shape[0])
        many = x.numel() > FUSED_ROWS * x.shape[-1]
        if many and float8 and x.dtype == torch.bfloat16 and can_multiply(params.orig_shape, params.blocksize):
            if triton_available(x.device):
                y = cls._linear_float8(x, weight, bias)
                return y if low_rank is None else low_rank.add_to(y, x)
        fits = low_rank is None or (low_rank.rank in FUSED_RANKS and x.dtype.itemsize == 2)
        if many and fits and cls._has_kernel(x.device, params):
            return torch.nn.functional.linear(x, cls._unpack(weight._qdata, params, x.dtype, low_rank), bias)
        if low_rank is None:
            return cls._linear(x, weight, bias)
        return cls._add_linear(low_rank.of(x, bias), x, weight)

    @classmethod
    def _linear(cls, x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Where our kernel is not, bitsandbytes chooses between its fused one and dequantize-then-multiply."""
        params = weight._params
        if cls._has_few_rows_kernel(x, params):
            rows = x.reshape(-1, x.shape[-1])
            y = few_rows_linear(rows, *_first_arguments(weight._qdata, params), bias, *params.nested_statistics)
            return y.view(*x.shape[:-1], params.orig_shape[0])
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
            *params.nested_statistics,
        )

    @classmethod
    def _add_linear(cls, y: torch.Tensor, x: torch.Tensor, weight: QuantizedTensor) -> torch.Tensor:
        """``y (..., rows)``, which is overwritten, plus ``x (..., columns)`` times the weight."""
        if x.numel() <= FUSED_ROWS * x.shape[-1]:
            return y.add_(cls._linear(x, weight, None))
        # the product adds to what is there as it is written: an addition of its own would move y three times more
        dequantized = cls.dequantize(weight._qdata, weight._params, x.dtype)
        y.view(-1, y.shape[-1]).addmm_(x.reshape(-1, x.shape[-1]), dequantized.t())
        return y

    @staticmethod
    def _linear_float8(x: torch.Tensor, weight: QuantizedTensor, bias: torch.Tensor | None) -> torch.Tensor:
        params = weight._params
        unpacked, scale = unpack_4bit_rows(*_first_arguments(weight._qdata, params), *params.nested_statistics)
        quantized, row_scale = quantize_rows(x.reshape(-1, x.shape[-1]))
        return scaled_mm(quantized, row_scale, unpacked, scale, bias).view(*x.shape[:-1], params.orig_shape[0])

    @classmethod
    def concatenate(cls, weights: Sequence[QuantizedTensor]) -> tuple[torch.Tensor, Params] | None:
        """The rows of several weights under each other, bit-equal when dequantized.

        Nested statistics are expanded to float32 first, since each weight has an offset of its own. None where blocks
        would have to be cut: the weights differ in quant_type, blocksize or columns, or one ends within a block.
        """
        params = [weight._params for weight in weights]
        if not cls.concatenable([(p.orig_shape, p.quant_type, p.blocksize) for p in params]):
            return None
        joined = cls.Params(
            scale=torch.cat([cls.absmax(p) for p in params]),
            orig_dtype=params[0].orig_dtype,
            orig_shape=(sum(p.orig_shape[0] for p in params), params[0].orig_shape[1]),
            quant_type=params[0].quant_type,
            blocksize=params[0].blocksize,
        )
        return torch.cat([weight._qdata for weight in weights]), joined

    @staticmethod
    def concatenable(weights: Sequence[tuple[tuple[int, int], str, int]]) -> bool:
        """Whether weights of these (shape, quant_type, blocksize) can be stacked without being unpacked."""
        (_, columns), *recipe = weights[0]
        return all(shape[1] == columns and rest == recipe for shape, *rest in weights) and all(
            shape[0] * columns % blocksize == 0 for shape, _, blocksize in weights[:-1]
        )

    @classmethod
    def rows(cls, weight: QuantizedTensor, start: int, stop: int) -> tuple[torch.Tensor, Params] | None:
        """Rows ``start`` to ``stop`` of a weight, bit-equal when dequantized; None where that cuts a block.

        Nested statistics stay nested where the rows begin at a block of them, else they are expanded to float32.
        """
        params = weight._params
        columns = params.orig_shape[1]
        first, last = start * columns, stop * columns
        if first % params.blocksize or (last % params.blocksize and stop != params.orig_shape[0]):
            return None
        block, end = first // params.blocksize, -(-last // params.blocksize)
        data = weight._qdata.reshape(-1, 1)[first // 2 : -(-last // 2)]
        shape = (stop - start, columns)
        if not params.nested or block % NESTED_BLOCKSIZE:
            absmax = cls.absmax(params)[block:end]
            return data, cls.Params(
                scale=absmax,
                orig_dtype=params.orig_dtype,
                orig_shape=shape,
                quant_type=params.quant_type,
                blocksize=params.blocksize,
            )
        return data, dataclasses.replace(
            params,
            orig_shape=shape,
            scale=params.scale[block // NESTED_BLOCKSIZE : -(-end // NESTED_BLOCKSIZE)],
            absmax_8bit=params.absmax_8bit[block:end],
        )

    @staticmethod
    def nbytes_of(shape: tuple[int, int], blocksize: int, nested: bool) -> int:
        """Bytes that a weight ``(rows, columns)`` takes once it is packed, statistics included."""
        blocks = math.ceil(math.prod(shape) / blocksize)
        packed = math.ceil(math.prod(shape) / 2)
        if not nested:
            return packed + 4 * blocks
        # a byte for each absmax; for each 256 of them a float32; a table of 256 and an offset
        return packed + blocks + 4 * (math.ceil(blocks / NESTED_BLOCKSIZE) + 256 + 1)

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


def _first_arguments(qdata: torch.Tensor, params: FourBitLayout.Params) -> tuple:
    """What our kernels take first of a weight: data, scale, rows, columns, blocksize, quant_type."""
    return qdata, params.scale, *params.orig_shape, params.blocksize, params.quant_type


register_layout_class(FourBitLayout.NAME, FourBitLayout)
