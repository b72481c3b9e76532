"""Telling what each tensor of a checkpoint is stored as, and folding its statistics into it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ..checkpoint import Checkpoint, Reader
from ..errors import CheckpointError
from ..header import TensorInfo
from . import int8 as llm_int8
from . import plain
from .comfyui import comfyui_format
from .four_bit import STATE, STATISTICS, FourBit, four_bit
from .int8 import Int8, int8
from .plain import FLOAT8, Float8, Plain, float8

_NUMBER = re.compile(r"\d+")


class StoredTensor(Protocol):
    """A tensor of a checkpoint, by what it stands for.

    Attributes:
        name: its name in the file.
        shape, dtype: those of the weight it stands for.
        packing: how it is packed; None for 16 bit and fp8.
        nbytes: bytes that :meth:`read` gives.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    packing: str | None
    nbytes: int

    def read(self, reader: Reader, device: torch.device) -> torch.Tensor: ...


@dataclass(frozen=True)
class Contents:
    """A checkpoint's tensors by name, statistics folded in: checked, but not read."""

    checkpoint: Checkpoint
    tensors: Mapping[str, StoredTensor]

    @property
    def path(self) -> str:
        return self.checkpoint.path


def is_statistic(name: str) -> bool:
    """Whether the tensor ``name`` only describes another one."""
    return STATE in name or name.endswith(
        (*STATISTICS, llm_int8.SCALES, llm_int8.FORMAT, *plain.SCALES, *plain.IGNORED)
    )


def read_contents(checkpoint: Checkpoint, prefix: str = "") -> Contents:
    """What the tensors under ``prefix`` are stored as.

    Of their data only the descriptions of 4-bit weights, and the descriptions and scales of fp8 weights are read.

    Raises:
        CheckpointError: a packed weight's statistics are missing, or do not fit it; or another tool packed it.
    """
    infos = {name: info for name, info in checkpoint.tensors.items() if name.startswith(prefix)}
    states = _descriptions(checkpoint.path, infos)
    _require_used(checkpoint.path, infos, states)
    scaled = _scaled_modules(infos)
    tensors: dict[str, FourBit | Int8 | Float8 | Plain] = {}
    with checkpoint.reader() as reader:
        for name, info in infos.items():
            if is_statistic(name):
                continue
            if name in states:
                tensors[name] = four_bit(checkpoint.path, name, states[name], infos, reader)
            elif info.dtype is torch.int8 and name.removesuffix(".weight") + llm_int8.SCALES in infos:
                tensors[name] = int8(checkpoint.path, name, infos, reader)
            elif info.dtype in FLOAT8:
                _require_readable(checkpoint.path, name, infos, reader)
                tensors[name] = float8(checkpoint.path, name, infos)
                _require_scale(checkpoint.path, tensors[name], info.dtype, infos, scaled, reader)
            else:
                if info.dtype not in plain.SIXTEEN_BIT:
                    _require_readable(checkpoint.path, name, infos, reader)
                tensors[name] = Plain(name, info.shape, info.dtype)
    return Contents(checkpoint, tensors)


def _descriptions(path: str, infos: Mapping[str, TensorInfo]) -> dict[str, str]:
    """4-bit weight -> the tensor that describes it."""
    states: dict[str, str] = {}
    for name in infos:
        weight, state, _ = name.partition(STATE)
        if not state:
            continue
        if weight not in infos:
            _refuse(path, f"describes a packed weight {weight} that it does not hold")
        if weight in states:
            _refuse(path, f"describes the packed weight {weight} twice: by {states[weight]} and by {name}")
        states[weight] = name
    return states


def _require_used(path: str, infos: Mapping[str, TensorInfo], states: Mapping[str, str]):
    """Check that no statistic belongs to a weight that would be read without it, as numbers that it does not mean."""
    for name in infos:
        stem, dot, suffix = name.rpartition(".")
        suffix = dot + suffix
        weight = stem if suffix in STATISTICS else f"{stem}.weight"
        if weight not in infos:
            continue
        if suffix in STATISTICS and weight not in states:
            _refuse(path, f"has {name}, but lacks the description {weight}{STATE}… that tells how {weight} is packed")
        dtype = infos[weight].dtype
        if suffix == llm_int8.SCALES and dtype is not torch.int8:
            _refuse(path, f"has the row scales {name}, but {weight} is not int8")
        if suffix in plain.SCALES and dtype in plain.SIXTEEN_BIT:
            _refuse(path, f"has the fp8 scale {name}, but {weight} is not fp8")


def _require_readable(path: str, weight: str, infos: Mapping[str, TensorInfo], reader: Reader):
    """Check that ComfyUI did not pack the weight in a format that is not read here."""
    form = comfyui_format(weight, infos, reader)
    # of fp8, the shapes of the scales tell which can be read
    if form is None or (infos[weight].dtype in FLOAT8 and form.startswith("float8_")):
        return
    raise CheckpointError(
        path,
        f"stores {weight} as {form}, a format of ComfyUI's own quantization that cannot be read.",
        "Choose the model's 16-bit or fp8 file here, or one that bitsandbytes packed; for this file use ComfyUI's own "
        "loaders, such as UNETLoader or DualCLIPLoader.",
    )


def _require_scale(
    path: str,
    weight: Float8,
    dtype: torch.dtype,
    infos: Mapping[str, TensorInfo],
    scaled: Mapping[str, str],
    reader: Reader,
):
    """Check that an fp8 weight has its scale if it needs one, and that it makes finite weights."""
    if weight.scale_name is None:
        module = weight.name.removesuffix(".weight")
        # A missing scale stands for 1 in ComfyUI, and a plain cast has none at all. But what says that it is scaled, or
        # is scaled in another block, has lost it.
        told = next((module + suffix for suffix in plain.IGNORED if module + suffix in infos), None)
        told = told or scaled.get(_NUMBER.sub("#", module))
        if told is not None:
            _refuse(path, f"has the fp8 weight {weight.name} without the scale that {told} tells of")
        return
    scale = reader.get_tensor(weight.scale_name).double()
    largest = torch.finfo(weight.dtype).max / torch.finfo(dtype).max
    # written so that NaN fails too
    if not ((scale >= 0) & (scale <= largest)).all():
        _refuse(path, f"has values in {weight.scale_name} that are not finite, negative, or too large for bfloat16")


def _scaled_modules(infos: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Module without its block's number -> a scale of an fp8 weight that it has in some block."""
    return {_NUMBER.sub("#", name.rpartition(".")[0]): name for name in infos if name.endswith(plain.SCALES)}


def _refuse(path: str, cause: str):
    raise CheckpointError(path, f"{cause}.", "The file is damaged: download it again, or choose another.")
