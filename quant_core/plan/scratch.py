"""What a product with a weight needs beside its input and its output, layout by layout.

This is the one place that knows what the kernels allocate: when one changes, so does its function here. ``fused`` is
whether our own kernels run (quant_core/kernels); else it is those of bitsandbytes 0.50 on CUDA (backends/cuda/ops.py,
backends/default/ops.py).
"""

from __future__ import annotations

import math

import torch

from ..config import FLOAT8
from ..kernels.four_bit import can_unpack
from ..kernels.fp8 import can_multiply, is_in_block
from ..kernels.int8_configs import OUTLIER_CAPACITY
from ..source import Source
from .weights import recipe

FLOAT16, FLOAT32, INT32 = 2, 4, 4  # bytes


def linear_scratch(
    source: Source,
    module: str,
    rows: int,
    fused: bool,
    dtype: torch.dtype,
    compute_dtype: torch.dtype | None = None,
) -> int:
    """Most bytes that live beside the input ``(rows, columns)`` and the output of one linear layer.

    Args:
        dtype: of input and output.
        compute_dtype: of the product of a packed weight, where it is another.
    """
    name = f"{module}.weight"
    tensor, config = source.tensors[name], recipe(source, name)
    shape = tensor.shape
    if config is None:
        return plain_scratch(shape, tensor.dtype, dtype)
    compute_dtype = compute_dtype or dtype
    casts = 0 if compute_dtype == dtype else rows * sum(shape) * compute_dtype.itemsize
    if config.precision == "int8":
        scratch = fused_int8_scratch if fused else int8_scratch
        return casts + scratch(shape, rows, config.int8_threshold, compute_dtype)
    if (
        fused
        and source.config.compute_dtype == FLOAT8
        and dtype == torch.bfloat16
        and is_in_block(module)
        and can_multiply(shape, config.blocksize)
    ):
        return float8_scratch(shape, rows)
    expands = config.double_quant and not (fused and can_unpack(shape, config.blocksize))
    return casts + four_bit_scratch(shape, config.blocksize, expands, compute_dtype)


def plain_scratch(shape: tuple[int, int], stored: torch.dtype, dtype: torch.dtype) -> int:
    """A copy of the weight in ``dtype``, unless it is stored in that."""
    return 0 if stored == dtype else math.prod(shape) * dtype.itemsize


def four_bit_scratch(shape: tuple[int, int], blocksize: int, expands: bool, dtype: torch.dtype) -> int:
    """The unpacked weight; where nested absmax values are expanded first, those too, before and after their offset.

    Few rows of input are multiplied without unpacking; that is not counted on.
    """
    blocks = math.ceil(math.prod(shape) / blocksize)
    return math.prod(shape) * dtype.itemsize + (2 * FLOAT32 * blocks if expands else 0)


def float8_scratch(shape: tuple[int, int], rows: int) -> int:
    """The weight and the input in float8, with a scale for each of their rows."""
    outputs, columns = shape
    return (outputs + rows) * (columns + FLOAT32)


def int8_scratch(shape: tuple[int, int], rows: int, threshold: float, dtype: torch.dtype) -> int:
    """LLM.int8(): the input in float16 and in 8 bit, the int32 product, and the float16 one that it is scaled to."""
    outputs, columns = shape
    result = 0 if dtype == torch.float16 else FLOAT16 * rows * outputs
    product = (FLOAT16 + 1) * rows * columns + INT32 * rows * outputs + result
    if not threshold:
        return product
    # outliers are looked for in magnitudes and a mask of the input, before there is an output
    search = (FLOAT16 + 1 + FLOAT16 + 1) * rows * columns - dtype.itemsize * rows * outputs
    return max(product, search)


def fused_int8_scratch(shape: tuple[int, int], rows: int, threshold: float, dtype: torch.dtype) -> int:
    """The input in 8 bit with its row scales; with a threshold, the outlier columns of input and weight."""
    outputs, columns = shape
    outliers = OUTLIER_CAPACITY * (rows + outputs) * dtype.itemsize if threshold else 0
    return rows * columns + FLOAT32 * rows + outliers
