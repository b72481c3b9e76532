"""LLM.int8() as operators that torch.compile takes whole: our kernels where Triton runs, else bitsandbytes'."""

from __future__ import annotations

import functools

import bitsandbytes  # noqa: F401, for its operators
import torch

from . import int8_ahead, triton_available
from .int8_reference import FLOAT16_MAX
from .operator import operator


def _ours_work(device: torch.device, threshold: float) -> bool:
    # of a number that a graph takes as an input, only a branch makes a bool
    return _ours_work_with(device, True if threshold > 0 else False)


# as triton_available: not to be traced
@torch.compiler.assume_constant_result
def _ours_work_with(device: torch.device, outliers: bool) -> bool:
    return _ours_were_seen_to_work(device, outliers)


@functools.cache
def _ours_were_seen_to_work(device: torch.device, outliers: bool) -> bool:
    if not triton_available(device):
        return False
    int8_ahead.wait()
    from .int8_triton import plain_triton_works

    return plain_triton_works(device, outliers)


@operator(
    "quantflux::int8_linear",
    schema="(Tensor x, Tensor weight, Tensor scale, Tensor? bias, float threshold) -> Tensor",
    in_graph=lambda x, weight, scale, bias, threshold: _ours_work(x.device, threshold),
)
def int8_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, threshold: float
) -> torch.Tensor:
    """``x (..., columns)`` times the int8 ``weight (rows, columns)`` by LLM.int8() arithmetic, in the dtype of ``x``.

    Args:
        scale: float32 absmax of each row of the weight ``(rows,)``.
        bias: ``(rows,)``.
        threshold: input columns with a magnitude at or above it are multiplied in the dtype of ``x``; 0 for none.

    Source: Dettmers et al., LLM.int8(), https://arxiv.org/abs/2208.07339; ``bitsandbytes.MatMul8bitLt``.
    """
    rows = x.reshape(-1, x.shape[-1])
    if _ours_work(x.device, threshold):
        from .int8_triton import int8_linear_triton

        y = int8_linear_triton(rows, weight, scale, bias, threshold)
    else:
        y = _int8_linear_bitsandbytes(rows, weight, scale, bias, threshold)
    return y.reshape(*x.shape[:-1], weight.shape[0])


@int8_linear.register_fake
def _(x, weight, scale, bias, threshold):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@operator(
    "quantflux::int8_add_linear",
    schema="(Tensor(a!) y, Tensor x, Tensor weight, Tensor scale, float threshold) -> ()",
)
def int8_add_linear(
    y: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, threshold: float
) -> None:
    """Add the product of ``int8_linear`` to ``y (..., rows)``, in place."""
    rows = x.reshape(-1, x.shape[-1])
    if _ours_work(x.device, threshold) and y.is_contiguous() and y.dtype == x.dtype:
        from .int8_triton import int8_linear_triton

        int8_linear_triton(rows, weight, scale, None, threshold, y=y.view(-1, weight.shape[0]))
    else:
        y.add_(int8_linear(x, weight, scale, None, threshold))


@int8_add_linear.register_fake
def _(y, x, weight, scale, threshold):
    return None


def _int8_linear_bitsandbytes(
    rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None, threshold: float
) -> torch.Tensor:
    """Inputs beyond float16's range are limited to it before they are quantized, since bitsandbytes quantizes
    float16; with a threshold they are outliers and multiplied unlimited."""
    if not rows.numel():
        return rows.new_zeros(rows.shape[0], weight.shape[0])
    # bitsandbytes' kernel takes the values in the order in which they lie
    half = rows.to(torch.float16).clamp(-FLOAT16_MAX, FLOAT16_MAX).contiguous()
    quantized, row_scale, outliers = torch.ops.bitsandbytes.int8_vectorwise_quant(half, threshold)
    if rows.is_cuda and rows.dtype != torch.float16:
        y = scaled_in_range(quantized, weight, row_scale, scale, bias).to(rows.dtype)
        return y if outliers is None else _add_outliers(y, rows, weight, scale, outliers)
    if threshold > 0:
        return torch.ops.bitsandbytes.int8_mixed_scaled_mm(rows, quantized, weight, row_scale, scale, outliers, bias)[0]
    return torch.ops.bitsandbytes.int8_scaled_mm(quantized, weight, row_scale, scale, bias=bias, dtype=rows.dtype)


def scaled_in_range(
    quantized: torch.Tensor,
    weight: torch.Tensor,
    row_scale: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """int8 ``quantized (tokens, columns)`` times ``weight (rows, columns)`` plus ``bias (rows,)``, in float32.

    bitsandbytes' kernels for cards scale a product to float16, whatever is asked for. A token whose product might leave
    its range is scaled down by a power of two before, and up again after: rounded as it would have been.

    Args:
        row_scale, scale: float32 absmax of each token and of each row of the weight.
    """
    bound = row_scale * scale.amax() * weight.shape[1]
    factor = (bound / FLOAT16_MAX).log2().ceil().clamp_min(0).nan_to_num().exp2()
    product = torch.ops.bitsandbytes.int8_linear_matmul(quantized, weight)
    half = torch.ops.bitsandbytes.int8_mm_dequant(product, row_scale / factor, scale)
    del product  # of four bytes each, as what follows
    y = half.float().mul_(factor[:, None])
    return y if bias is None else y.add_(bias)


def _add_outliers(
    y: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, outliers: torch.Tensor
) -> torch.Tensor:
    """``y`` plus the outlier columns of ``rows`` times those of the weight, in the dtype of ``rows``."""
    if not outliers.numel():
        return y
    columns = torch.ops.bitsandbytes.int8_vectorwise_dequant(weight[:, outliers].contiguous(), scale)
    return y.addmm_(rows[:, outliers], columns.to(rows.dtype).t())
