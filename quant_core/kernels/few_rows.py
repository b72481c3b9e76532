"""4-bit weights times few rows of inputs, such as modulation's: unpacked on the chip, and never written."""

from __future__ import annotations

import torch

from . import triton_available
from .four_bit import can_unpack, code_table, unpack_4bit_reference
from .launch import on_device_of
from .operator import operator

MAX_ROWS = 4  # of inputs: each of them reads the weight anew, from the L2 cache
COLUMNS = 1024  # of a weight, which are taken at a time
MEASURED = 9  # major compute capability: on an H200 1.2 to 1.4 times as fast as bitsandbytes' (2026-11-29)


def can_multiply_few(shape: tuple[int, int], blocksize: int) -> bool:
    """Whether the kernel takes a weight ``(rows, columns)``."""
    return shape[1] % COLUMNS == 0 and can_unpack(shape, blocksize)


# as triton_available: not to be traced
@torch.compiler.assume_constant_result
def few_rows_pay(device: torch.device) -> bool:
    """Whether the kernel runs on ``device`` and was measured to be faster than bitsandbytes' there."""
    return triton_available(device) and torch.cuda.get_device_capability(device)[0] == MEASURED


def few_rows_linear_reference(
    x: torch.Tensor,
    packed: torch.Tensor,
    absmax: torch.Tensor,
    rows: int,
    columns: int,
    blocksize: int,
    quant_type: str,
    bias: torch.Tensor | None = None,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x (tokens, columns)`` times the weight plus ``bias (rows,)``, in float32, rounded to the dtype of ``x``.

    The weight itself is not rounded. Other arguments as in :func:`.four_bit.unpack_4bit_reference`.
    """
    weight = unpack_4bit_reference(
        packed, absmax, rows, columns, blocksize, quant_type, torch.float32, absmax_8bit, absmax_code, absmax_offset
    )
    y = x.float() @ weight.t()
    return (y if bias is None else y + bias.float()).to(x.dtype)


@operator(
    "quantflux::few_rows_linear",
    "(Tensor x, Tensor packed, Tensor absmax, int rows, int columns, int blocksize, str quant_type, Tensor? bias=None, "
    "Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> Tensor",
    in_graph=lambda *args: True,
)
def few_rows_linear(
    x, packed, absmax, rows, columns, blocksize, quant_type,
    bias=None, absmax_8bit=None, absmax_code=None, absmax_offset=None,
):  # fmt: skip
    """As :func:`few_rows_linear_reference`, by Triton, where ``triton_available`` and :func:`can_multiply_few`."""
    from . import few_rows_triton as kernels

    y = torch.empty(x.shape[0], rows, dtype=x.dtype, device=x.device)
    statistics = absmax, absmax_8bit, absmax_code, absmax_offset
    code = code_table(quant_type, packed.device)
    with on_device_of(x):
        kernels.multiply(x.contiguous(), packed.contiguous(), statistics, code, bias, y, blocksize)
    return y


@few_rows_linear.register_fake
def _(x, packed, absmax, rows, *others, **more):
    return x.new_empty(x.shape[0], rows)
