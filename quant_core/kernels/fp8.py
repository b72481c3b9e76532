"""4-bit weights multiplied in float8: unpacked to e4m3 with a scale per row, inputs with a scale per token."""

from __future__ import annotations

import torch

from ..config import FLOAT8
from ..errors import ConfigError
from . import triton_available
from .four_bit import can_unpack, code_table, expanded_absmax, unpacked_codes
from .launch import IN_GRAPH_COLUMNS, on_device_of
from .operator import operator

LARGEST = 448.0  # of FLOAT8
SMALLEST = 1e-30  # of a row's largest magnitude: its reciprocal stays finite
MAX_COLUMNS = 16384  # a row is unpacked on the chip at once
MULTIPLE = 16  # of rows and columns, for cuBLAS
MIN_COMPUTE_CAPABILITY = (8, 9)  # Ada: the first with float8 tensor cores


def require_float8(device: torch.device, capability: tuple[int, int] | None = None) -> None:
    """Check that ``device`` can multiply in float8.

    Args:
        capability: compute capability to check; by default that of ``device``.

    Raises:
        ConfigError: no NVIDIA card, one older than Ada, or Triton does not run.
    """
    remedy = "Choose compute_dtype auto, which multiplies in 16 bit on every device."
    if device.type != "cuda" or torch.version.hip:
        raise ConfigError(f"compute_dtype float8 needs an NVIDIA card, but the model runs on {device}. {remedy}")
    capability = capability or torch.cuda.get_device_capability(device)
    if capability < MIN_COMPUTE_CAPABILITY:
        raise ConfigError(
            f"compute_dtype float8 needs compute capability 8.9 (Ada) or newer, but {device} has "
            f"{capability[0]}.{capability[1]}. {remedy}"
        )
    if not triton_available(device):
        raise ConfigError(
            "compute_dtype float8 needs Triton, which is not installed or does not run here: then the log says why. "
            f"Install it with a C compiler, or: {remedy}"
        )


def is_in_block(module: str) -> bool:
    """Whether the layer called ``module`` is one of those that are multiplied in float8: a block's, which is numbered.

    The first and the last layers stay with bfloat16: rounding in them shows most, and they are small. On the small
    FLUX of the tests ``img_in`` and ``final_layer`` add three times the error of all blocks each.

    >>> is_in_block("double_blocks.0.img_mod.lin"), is_in_block("final_layer.adaLN_modulation.1")
    (True, False)
    """
    return any(part.isdigit() for part in module.split(".")[:-1])


def can_multiply(shape: tuple[int, int], blocksize: int) -> bool:
    """Whether a weight ``(rows, columns)`` can be multiplied in float8; the others are multiplied in 16 bit."""
    fits = shape[1] <= MAX_COLUMNS and shape[0] % MULTIPLE == 0 and shape[1] % MULTIPLE == 0
    return fits and can_unpack(shape, blocksize)


def unpack_4bit_rows_reference(
    packed: torch.Tensor,
    absmax: torch.Tensor,
    rows: int,
    columns: int,
    blocksize: int,
    quant_type: str,
    absmax_8bit: torch.Tensor | None = None,
    absmax_code: torch.Tensor | None = None,
    absmax_offset: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """e4m3 ``(rows, columns)`` and float32 scales ``(rows, 1)``: the weight is their product.

    The scale takes a row's largest weight to e4m3's, 448. That weight is the row's largest absmax, since the largest
    code value of NF4 and FP4 is 1. Which scale it is matters little: e4m3's relative error is the same over 14
    powers of two. Arguments as in :func:`.four_bit.unpack_4bit_reference`.
    """
    absmax = expanded_absmax(absmax, absmax_8bit, absmax_code, absmax_offset)
    largest = absmax.reshape(rows, -1).abs().amax(1, keepdim=True).clamp(min=SMALLEST)
    limit = torch.full_like(largest, LARGEST)  # torch multiplies by the reciprocal of a number
    factor = (limit / largest) * absmax.reshape(rows, -1)
    weight = unpacked_codes(packed, rows * columns, quant_type).reshape(rows, -1, blocksize) * factor[:, :, None]
    return weight.reshape(rows, columns).to(FLOAT8), largest / limit


def quantize_rows_reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``x (rows, columns)`` as e4m3 and float32 scales ``(rows, 1)``."""
    values = x.float()
    largest = values.abs().amax(1, keepdim=True).clamp(min=SMALLEST)
    limit = torch.full_like(largest, LARGEST)
    return (values * (limit / largest)).to(FLOAT8), largest / limit


def scaled_mm_reference(
    x: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """bfloat16 ``(tokens, rows)`` of e4m3 ``x (tokens, columns)`` and ``weight (rows, columns)`` with their scales."""
    y = (x.float() @ weight.float().t()) * (x_scale * weight_scale.t())
    return (y if bias is None else y + bias.float()).bfloat16()


def _only_multiplies(
    packed, absmax, rows, columns, blocksize, quant_type, absmax_8bit=None, absmax_code=None, absmax_offset=None
) -> bool:
    """As :func:`.four_bit._only_multiplies`."""
    return absmax_8bit is None


@operator(
    "quantflux::unpack_4bit_rows",
    "(Tensor packed, Tensor absmax, int rows, int columns, int blocksize, str quant_type, "
    "Tensor? absmax_8bit=None, Tensor? absmax_code=None, Tensor? absmax_offset=None) -> (Tensor, Tensor)",
    in_graph=_only_multiplies,
)
def unpack_4bit_rows(
    packed, absmax, rows, columns, blocksize, quant_type, absmax_8bit=None, absmax_code=None, absmax_offset=None
):
    """As :func:`unpack_4bit_rows_reference`, by Triton, where :func:`can_multiply`."""
    from . import fp8_triton as kernels

    out, scale = _rows_like(packed, rows, columns)
    statistics = absmax, absmax_8bit, absmax_code, absmax_offset
    code = code_table(quant_type, packed.device)
    packed = packed.contiguous()
    with on_device_of(packed):
        kernels.unpack_rows(packed, statistics, code, out, scale, blocksize)
    return out, scale


@unpack_4bit_rows.register_fake
def _(packed, absmax, rows, columns, *others, **more):
    return _rows_like(packed, rows, columns)


def quantize_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`quantize_rows_reference`, by Triton; in a compiled graph it is the reference."""
    if torch.compiler.is_compiling():
        if x.shape[1] > IN_GRAPH_COLUMNS:
            # so that inductor writes x, and does not make it once for the scales and once for the codes
            x = x.as_strided(x.shape, x.stride())
        return quantize_rows_reference(x)
    from . import fp8_triton as kernels

    out, scale = _rows_like(x, *x.shape)
    with on_device_of(x):
        kernels.quantize_rows(x if x.stride(-1) == 1 else x.contiguous(), out, scale)
    return out, scale


def scaled_mm(
    x: torch.Tensor, x_scale: torch.Tensor, weight: torch.Tensor, weight_scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """As :func:`scaled_mm_reference`, by cuBLAS or CUTLASS, which torch chooses."""
    return torch._scaled_mm(
        x,
        weight.t(),
        scale_a=x_scale,
        scale_b=weight_scale.t(),
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def _rows_like(tensor: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        torch.empty(rows, columns, dtype=FLOAT8, device=tensor.device),
        torch.empty(rows, 1, dtype=torch.float32, device=tensor.device),
    )
