"""LLM.int8() by our Triton kernels: quantize, find the outlier columns, multiply; the host waits for nothing."""

from __future__ import annotations

import functools
import logging

import torch

from .few_rows import MAX_ROWS
from .int8_configs import FEW, FEW_TOKENS, HOPPER_SOME_WIDE, MatmulConfig, choose
from .int8_matmul import fits_bulk_copy, matmul
from .int8_quantize import Outliers, quantize_rows
from .int8_reference import int8_linear_reference
from .launch import on_device_of
from .operator import operator

logger = logging.getLogger(__name__)


def int8_linear_triton(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    threshold: float = 0.0,
    y: torch.Tensor | None = None,
    config: MatmulConfig | None = None,
) -> torch.Tensor:
    """The kernels' ``int8_linear_reference``, but for ``x (tokens, columns)`` and with ``y`` overwritten.

    Args:
        y: ``(tokens, rows)``, contiguous, in the dtype of ``x``: the product is added to it.
        config: block shapes; by default those for the card and the sizes.
    """
    dtype, weight, scale = x.dtype, weight.contiguous(), scale.contiguous()
    x = x if x.stride(-1) == 1 else x.contiguous()
    if x.shape[0] == 0:
        return x.new_empty(0, weight.shape[0]) if y is None else y
    if torch.compiler.is_dynamo_compiling() and threshold > 0:
        # so that inductor writes x once, and not for each kernel that reads it
        x = x.as_strided(x.shape, x.stride())
    with on_device_of(x):
        codes, absmax, outliers = quantize_rows(x, weight, scale, threshold)
    x, listed, gathered = (x, *outliers) if outliers else (None, None, None)
    if y is None and config is None:
        return int8_product(codes, absmax, weight, scale, bias, dtype, x, listed, gathered)
    return product(codes, absmax, weight, scale, bias, dtype, x, outliers, y, config)


@operator(
    "quantflux::int8_product",
    schema="(Tensor codes, Tensor absmax, Tensor weight, Tensor scale, Tensor? bias, ScalarType dtype, "
    "Tensor? x, Tensor? outliers, Tensor? gathered) -> Tensor",
    in_graph=lambda codes, *others: codes.shape[0] <= MAX_ROWS,
)
def int8_product(codes, absmax, weight, scale, bias, dtype, x, outliers, gathered):
    """What is left of ``int8_linear`` once the rows of ``x`` are quantized.

    A compiled graph takes Triton's kernels, which multiply modulation's few rows, but not Gluon's. It is another for as
    few tokens as these, which no prompt has.
    """
    apart = None if outliers is None else Outliers(outliers, gathered)
    return product(codes, absmax, weight, scale, bias, dtype, x, apart)


@int8_product.register_fake
def _(codes, absmax, weight, scale, bias, dtype, x, outliers, gathered):
    return torch.empty(codes.shape[0], weight.shape[0], dtype=dtype, device=codes.device)


def product(
    codes: torch.Tensor,
    absmax: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
    x: torch.Tensor | None,
    outliers: Outliers | None,
    y: torch.Tensor | None = None,
    config: MatmulConfig | None = None,
) -> torch.Tensor:
    """``(tokens, rows)`` in ``dtype``, of int8 ``codes (tokens, columns)`` and ``weight (rows, columns)``.

    Args:
        absmax, x, outliers: as ``int8_matmul.matmul`` takes them.
        y: see :func:`int8_linear_triton`, as ``config``.
    """
    out = torch.empty(codes.shape[0], weight.shape[0], dtype=dtype, device=codes.device) if y is None else y
    config = config or _config(codes, weight, out, outliers is not None)
    multiply = _gluon().matmul_hopper if config.kernel == "hopper" else matmul
    with on_device_of(codes):
        multiply(codes, weight, out, absmax, scale, bias, x, outliers, config, add=y is not None)
    return out


def _config(codes: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, outliers: bool) -> MatmulConfig:
    if codes.shape[0] <= FEW_TOKENS:
        return FEW  # whatever the card: a compiled graph need not ask
    sizes = codes.shape[0], *weight.shape, out.element_size()
    config = _chosen(*sizes, codes.device)
    if config.kernel == "plain":
        return config
    fits = fits_bulk_copy(out, weight.shape[1]) and weight.data_ptr() % 16 == 0
    return config if fits and _gluon_works(codes.device, outliers) else _chosen(*sizes, codes.device, plain=True)


@functools.cache
def _gluon():
    """Looked up once: an import takes a microsecond each time, and products come by the hundred."""
    from . import int8_hopper

    return int8_hopper


@functools.lru_cache(maxsize=4096)
def _chosen(*sizes_and_device, plain: bool = False) -> MatmulConfig:
    *sizes, device = sizes_and_device
    return choose(*sizes, torch.cuda.get_device_capability(device), plain=plain)


@functools.cache
def plain_triton_works(device: torch.device, outliers: bool) -> bool:
    """Whether plain Triton's product is that of the reference on ``device``, with outlier columns or without.

    It is asked once because rows that run beside each other find the outlier columns together: whether each sees what
    the others wrote is up to the compiler and the card.
    """
    return _agrees("Triton", FEW, device, outliers, "bitsandbytes' kernels are")


@functools.cache
def _gluon_works(device: torch.device, outliers: bool) -> bool:
    """Whether Gluon's product is that of the reference on ``device``. It is experimental: a release may change it."""
    return _agrees("Gluon", HOPPER_SOME_WIDE, device, outliers, "plain Triton is")


def _agrees(compiler: str, config: MatmulConfig, device: torch.device, outliers: bool, instead: str) -> bool:
    """Whether a kernel runs and gives the reference's product, rounding aside.

    What is compiled for it is what FLUX is multiplied by, so that asking makes the first step no longer.
    """
    x, weight, scale, bias = _sample(device)
    threshold = _SAMPLE_THRESHOLD if outliers else 0.0
    try:
        ours = int8_linear_triton(x, weight, scale, bias, threshold, config=config)
        expected = int8_linear_reference(x, weight, scale, bias, threshold)
    except torch.cuda.OutOfMemoryError:
        raise  # says nothing about the kernel: it is asked again once there is room
    except Exception as error:  # whatever a compiler may raise
        logger.warning("%s's int8 kernels do not run here, %s used instead: %s", compiler, instead, error)
        return False
    rounding = torch.finfo(x.dtype).eps
    agrees = torch.allclose(ours.float(), expected.float(), rtol=rounding, atol=1e-5 * expected.abs().max().item())
    if not agrees:
        logger.warning("%s's int8 product is wrong here, %s used instead.", compiler, instead)
    return agrees


_SAMPLE_THRESHOLD = 6.0
_SAMPLE_SIZES = 300, 400, 3072  # tokens, rows, columns: as wide as FLUX


def _sample(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Inputs with outlier columns, each beyond the threshold in one row; an int8 weight with its scales; a bias."""
    tokens, rows, columns = _SAMPLE_SIZES
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(tokens, columns, generator=generator, device=device).clamp_(-5, 5)
    outliers = torch.arange(0, tokens, 7)
    x[outliers, torch.arange(len(outliers)) * 70] = 20.0
    weight = torch.randint(-127, 128, (rows, columns), generator=generator, device=device, dtype=torch.int8)
    scale, bias = (torch.rand(rows, generator=generator, device=device) for _ in range(2))
    return x.bfloat16(), weight, scale, bias.bfloat16()
