"""What the int8 kernels compute, in plain torch: LLM.int8() with bitsandbytes' rounding, sums in float64."""

from __future__ import annotations

import torch

FLOAT16_MAX = 65504.0


def quantize_rows_reference(
    x: torch.Tensor, threshold: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Quantize ``x (tokens, columns)`` to 8 bit with one scale per token, as ``int8_vectorwise_quant`` does.

    ``x`` is rounded to float16 and limited to its range. With a threshold, values at or above it are left out of the
    scale, and a column that has one is 0 throughout.

    Returns:
        int8 ``(tokens, columns)``; the float32 absmax of each token ``(tokens,)``; and the bool mask of outlier columns
        ``(columns,)``, None without a threshold. A token with a NaN has a NaN for its absmax.
    """
    half = x.to(torch.float16).clamp(-FLOAT16_MAX, FLOAT16_MAX).float()
    outlying = half.abs() >= threshold if threshold > 0 else None
    if outlying is not None:
        half = half.masked_fill(outlying, 0)
    absmax = half.abs().amax(dim=1, keepdim=True)
    scale = torch.where(absmax > 0, absmax.reciprocal() * 127, 0)
    codes = (half * scale).round().nan_to_num().to(torch.int8)
    if outlying is None:
        return codes, absmax.squeeze(1), None
    columns = outlying.any(dim=0)
    return codes.masked_fill(columns, 0), absmax.squeeze(1), columns


def int8_linear_reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    threshold: float = 0.0,
    y: torch.Tensor | None = None,
) -> torch.Tensor:
    """``x (..., columns)`` times the int8 ``weight (rows, columns)`` by LLM.int8() arithmetic, in the dtype of ``x``.

    Args:
        scale: float32 absmax of each row of the weight ``(rows,)``.
        threshold: columns of ``x`` with a magnitude at or above it are multiplied in the dtype of ``x``; 0 for none.
        y: ``(..., rows)``, added to the product.

    Source: Dettmers et al., LLM.int8(), https://arxiv.org/abs/2208.07339.
    """
    rows = x.reshape(-1, x.shape[-1])
    codes, absmax, outliers = quantize_rows_reference(rows, threshold)
    product = (codes.double() @ weight.double().T) * absmax[:, None] * scale / 127**2
    if outliers is not None:
        columns = outliers.nonzero().view(-1)
        dequantized = (weight[:, columns] * scale[:, None] * (1 / 127)).to(x.dtype)
        product += rows[:, columns].double() @ dequantized.double().T
    if bias is not None:
        product += bias
    if y is not None:
        product += y.reshape(product.shape)
    return product.to(x.dtype).reshape(*x.shape[:-1], weight.shape[0])
