"""LLM.int8() weights as bitsandbytes stores them: ``X.weight`` int8, ``X.SCB`` and perhaps ``X.weight_format``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from comfy_kitchen.tensor import QuantizedTensor

from ..checkpoint import Reader
from ..errors import CheckpointError
from ..header import TensorInfo
from ..kernels.int8_reference import FLOAT16_MAX
from ..layouts import Int8Layout
from .four_bit import DAMAGED_REMEDY

SCALES = ".SCB"
FORMAT = ".weight_format"
# bitsandbytes packs from float16; so even -128 times scale / 127 stays within it
LARGEST_SCALE = FLOAT16_MAX * 127 / 128
ROW_MAJOR = 0  # the others are GPU layouts that bitsandbytes gave up


@dataclass(frozen=True)
class Int8:
    """A packed weight ``(rows, columns)``, checked against the file's header. Which dtype it was packed from is not
    stored: ``dtype`` is bfloat16, and the packed numbers stand for the same values in any."""

    path: str
    name: str
    shape: tuple[int, int]
    dtype: torch.dtype = torch.bfloat16

    packing = "int8"

    @property
    def nbytes(self) -> int:
        return Int8Layout.nbytes_of(self.shape)

    @property
    def expanded_nbytes(self) -> int:
        return self.nbytes

    def read(self, reader: Reader, device: torch.device) -> QuantizedTensor:
        """The packed weight on ``device``, with LLM.int8()'s default threshold.

        Raises:
            CheckpointError: a scale is no magnitude that float16 has.
        """
        scale_name = self.name.removesuffix(".weight") + SCALES
        scale = reader.get(scale_name, device)
        # written so that NaN fails too
        if not ((scale >= 0) & (scale <= LARGEST_SCALE)).all():
            raise CheckpointError(
                self.path,
                f"has values in {scale_name} that are not finite, negative, or too large for float16.",
                DAMAGED_REMEDY,
            )
        params = Int8Layout.Params(scale=scale, orig_dtype=self.dtype, orig_shape=self.shape)
        return QuantizedTensor(reader.get(self.name, device), Int8Layout.NAME, params)


def int8(path: str, name: str, tensors: Mapping[str, TensorInfo], reader: Reader) -> Int8:
    """The packed weight ``name``.

    Raises:
        CheckpointError: its scales do not fit it, or it is in a layout that bitsandbytes no longer writes.
    """
    module = name.removesuffix(".weight")
    weight, scale = tensors[name], tensors[module + SCALES]
    if len(weight.shape) != 2 or scale.shape != weight.shape[:1] or scale.dtype is not torch.float32:
        raise CheckpointError(
            path,
            f"cannot unpack {name}: it has shape {weight.shape}, and its scales {module}{SCALES} are {scale.shape} of "
            f"{scale.dtype}, not one float32 for each row.",
            DAMAGED_REMEDY,
        )
    form = tensors.get(module + FORMAT)
    if form is not None:
        usable = form.dtype is torch.uint8 and math.prod(form.shape) == 1
        if not usable or reader.get_tensor(module + FORMAT).item() != ROW_MAJOR:
            raise CheckpointError(
                path,
                f"stores {name} in a layout of old bitsandbytes versions ({module}{FORMAT}).",
                "Pack the model again with a bitsandbytes of today.",
            )
    return Int8(path, name, weight.shape)
