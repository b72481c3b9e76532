"""NF4 and FP4 unpacked by one kernel, LoRA included: the values of bitsandbytes, bit for bit."""

from __future__ import annotations

import functools

import bitsandbytes.functional as bnb
import torch

from .launch import on_device_of
from .operator import operator

FUSED_RANKS = (16, 32, 64, 128)  # of an update that is added while unpacking: its matrices are held on the chip
NESTED_BLOCKSIZE = 256  # fixed by bitsandbytes' fused kernels


def can_unpack(shape: tuple[int, int], blocksize: int) -> bool:
    """Whether the kernel takes a weight ``(rows, columns)``: no block runs across rows, and offsets fit in 32 bits."""
    return shape[1] % blocksize == 0 and shape[0] * shape[1] < 2**31


def unpack_4bit_reference(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    rows: int,
    columns: int,
    blocksize: int,
    quant_type: str,
    dtype: torch.dtype,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
    up: torch.Tensor | None = None,
    down: torch.Tensor | None = None,
) -> torch.Tensor:
    """``absmax * code[nibble] + up @ down``, computed in float32 and rounded to ``dtype`` once: ``(rows, columns)``.

    Args:
        packed: uint8, ``rows * columns / 2`` of them in any shape, first weight in the high nibble.
        absmax: float32 ``(blocks,)``; nested: the scale of each 256 of them, as in ``FourBitLayout.Params``.
        dtype: bfloat16, float16 or float32.
        up: bfloat16 or float16 ``(rows, rank)``, rank one of ``FUSED_RANKS``.
        down: the same, ``(rank, columns)``.
    """
    weight = unpacked_codes(packed, rows * columns, quant_type).reshape(-1, blocksize)
    weight = weight * expanded_absmax(absmax, absmax_8bit, absmax_code, absmax_offset)[:, None]
    weight = weight.reshape(rows, columns)
    if up is not None:
        weight = weight + up.float() @ down.float()
    return weight.to(dtype)


def _only_multiplies(
    packed, absmax, rows, columns, blocksize, quant_type, dtype,
    absmax_8bit=None, absmax_code=None, absmax_offset=None, up=None, down=None,
) -> bool:  # fmt: skip
    """Neither nested statistics nor a LoRA add to a product: in a graph, both would be one operation, rounded once."""
    return absmax_8bit is None and up is None


@operator(
    "quantflux::unpack_4bit",
    "(Tensor packed, Tensor absmax, int rows, int columns, int blocksize, str quant_type, ScalarType dtype, "
    "Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None, Tensor? up=None, "
    "Tensor? down=None) -> Tensor",
    in_graph=_only_multiplies,
)
def unpack_4bit(
    packed, absmax, rows, columns, blocksize, quant_type, dtype,
    absmax_8bit=None, absmax_code=None, absmax_offset=None, up=None, down=None,
):  # fmt: skip
    """As :func:`unpack_4bit_reference`, by Triton, where ``triton_available`` and :func:`can_unpack`."""
    from . import four_bit_triton as kernels

    out = torch.empty(rows, columns, dtype=dtype, device=packed.device)
    statistics = absmax, absmax_8bit, absmax_code, absmax_offset
    code = code_table(quant_type, packed.device)
    packed = packed.contiguous()
    with on_device_of(packed):
        if up is None:
            kernels.unpack(packed, statistics, code, out, blocksize)
        else:
            kernels.unpack_add(packed, statistics, code, up.contiguous(), down.contiguous(), out, blocksize)
    return out


@unpack_4bit.register_fake
def _(packed, absmax, rows, columns, blocksize, quant_type, dtype, *nested_and_update, **more):
    return torch.empty(rows, columns, dtype=dtype, device=packed.device)


def unpacked_codes(packed: torch.Tensor, count: int, quant_type: str) -> torch.Tensor:
    """The float32 code values of ``count`` packed weights, flat."""
    nibbles = torch.stack((packed.flatten() >> 4, packed.flatten() & 15), dim=1)
    return code_table(quant_type, packed.device)[nibbles.flatten()[:count].int()]


def expanded_absmax(
    absmax: torch.Tensor,
    absmax_8bit: torch.Tensor | None,
    absmax_code: torch.Tensor | None,
    absmax_offset: torch.Tensor | None,
) -> torch.Tensor:
    """The float32 absmax of every block ``(blocks,)``, nested or not."""
    if absmax_8bit is None:
        return absmax
    scale = absmax.repeat_interleave(NESTED_BLOCKSIZE)[: absmax_8bit.numel()]
    return absmax_code[absmax_8bit.int()] * scale + absmax_offset


# compiled graphs hold the table: traced, it would be made anew at each call
@torch.compiler.assume_constant_result
def code_table(quant_type: str, device: torch.device) -> torch.Tensor:
    """bitsandbytes' 16 float32 code values."""
    return _code_table(quant_type, device)


@functools.cache
def _code_table(quant_type: str, device: torch.device) -> torch.Tensor:
    return bnb.get_4bit_type(quant_type, device=device)
