"""Formats of ComfyUI's own quantization, which a text beside each weight names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import torch

from ..checkpoint import Reader
from ..header import TensorInfo

DESCRIPTION = ".comfy_quant"
_LARGEST_DESCRIPTION = 4096  # bytes; real ones take less than 100
_NVFP4_SCALE = ".weight_scale_2"  # no other format has a second scale


def comfyui_format(weight: str, tensors: Mapping[str, TensorInfo], reader: Reader) -> str | None:
    """What ComfyUI calls the format of ``weight``, such as ``nvfp4``; None if nothing tells of one.

    A description that cannot be understood counts as none: the weight may be readable without it.
    """
    module = weight.removesuffix(".weight")
    described = _described(module + DESCRIPTION, tensors, reader)
    if described is None and tensors[weight].dtype is torch.uint8 and module + _NVFP4_SCALE in tensors:
        return "nvfp4"
    return described


def _described(name: str, tensors: Mapping[str, TensorInfo], reader: Reader) -> str | None:
    info = tensors.get(name)
    if info is None or info.dtype is not torch.uint8 or math.prod(info.shape) > _LARGEST_DESCRIPTION:
        return None
    try:
        form = json.loads(reader.get_tensor(name).numpy().tobytes())["format"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    # it is shown in a message
    return form if isinstance(form, str) and form.isidentifier() and len(form) <= 100 else None
