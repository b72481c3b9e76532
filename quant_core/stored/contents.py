"""Telling what each tensor of a checkpoint is stored as, and folding its statistics into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ..checkpoint import Checkpoint, Reader
from ..errors import CheckpointError
from . import int8 as llm_int8
from . import plain
from .four_bit import STATE, STATISTICS, FourBit, four_bit
from .int8 import Int8, int8
from .plain import FLOAT8, Float8, Plain, float8


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
    """What the tensors under ``prefix`` are stored as. Of their data only the descriptions of 4-bit weights are read.

    Raises:
        CheckpointError: a packed weight's statistics are missing or do not fit it.
    """
    infos = {name: info for name, info in checkpoint.tensors.items() if name.startswith(prefix)}
    states = {name.partition(STATE)[0]: name for name in infos if STATE in name}
    lost = next((name for name in states if name not in infos), None)
    if lost is not None:
        raise CheckpointError(
            checkpoint.path,
            f"describes a packed weight {lost} that it does not hold.",
            "The file is damaged: download it again.",
        )
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
                tensors[name] = float8(checkpoint.path, name, infos)
            else:
                tensors[name] = Plain(name, info.shape, info.dtype)
    return Contents(checkpoint, tensors)
