"""Weights stored as floating-point numbers: 16 bit, 32 bit, and fp8 with or without a scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..checkpoint import Reader
from ..errors import CheckpointError
from ..header import TensorInfo

SIXTEEN_BIT = (torch.bfloat16, torch.float16, torch.float32)
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
# beside X.weight: what ComfyUI's scaled fp8 files call the factor, older name first
SCALES = (".scale_weight", ".weight_scale")
# beside it too; only ComfyUI's own fp8 products need them
IGNORED = (".scale_input", ".input_scale", ".comfy_quant")


@dataclass(frozen=True)
class Plain:
    """A tensor as stored. ``dtype`` is None for one that torch does not know."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None

    packing = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, reader: Reader, device: torch.device) -> torch.Tensor:
        return reader.get(self.name, device)


@dataclass(frozen=True)
class Float8:
    """An fp8 weight ``(rows, columns)``: it stands for ``weight * scale``, rounded to bfloat16.

    The scale is a float scalar, or one per row: ``(rows,)`` or ``(rows, 1)``.
    """

    name: str
    shape: tuple[int, ...]
    scale_name: str | None

    packing = None
    dtype = torch.bfloat16

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, reader: Reader, device: torch.device) -> torch.Tensor:
        weight = reader.get(self.name, device)
        if self.scale_name is None:
            return weight.to(self.dtype)
        scale = reader.get_tensor(self.scale_name).to(device, torch.float32)
        # one value for all, or one for each row
        scale = scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, 1)
        return weight.float().mul_(scale).to(self.dtype)


def float8(path: str, name: str, tensors: Mapping[str, TensorInfo]) -> Float8:
    """The fp8 tensor ``name``, with its scale if it has one.

    Raises:
        CheckpointError: the scale is of another kind, such as one per block.
    """
    shape = tensors[name].shape
    module = name.removesuffix(".weight")
    scale_name = next((module + suffix for suffix in SCALES if module + suffix in tensors), None)
    if scale_name is not None:
        scale = tensors[scale_name]
        one = math.prod(scale.shape) == 1
        per_row = len(shape) == 2 and scale.shape in ((shape[0],), (shape[0], 1))
        if scale.dtype not in SIXTEEN_BIT or not (one or per_row):
            raise CheckpointError(
                path,
                f"has the scale {scale_name} of shape {scale.shape} for a weight of shape {shape}: only one factor, or "
                "one per row, in 16 or 32 bit can be read.",
                "Use the model's 16-bit file.",
            )
    return Float8(name, shape, scale_name)
