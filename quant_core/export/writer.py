"""Writing one safetensors file, a few tensors at a time.

``safetensors.torch.save_file`` wants the whole model in the CPU's memory and cannot be stopped. Here one weight is
there at a time, and the progress callback is asked often. What is written is forced to the disk bit by bit, so that no
step takes as long as the whole file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

import torch

from ..header import DTYPES
from .tensors import Group

CHUNK = 32 * 2**20  # bytes between two calls of the callback
UNSYNCED = 64 * 2**20  # bytes that wait to be forced to the disk
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_safetensors(
    file: BinaryIO, groups: Sequence[Group], metadata: Mapping[str, str], written: Callable[[int], None]
) -> int:
    """Write a whole safetensors file to ``file``, which is empty and can be sought in.

    Args:
        metadata: the header's free-form text fields.
        written: called with the bytes written since the last call; what it raises ends the writing.

    Returns:
        bytes of the file.
    """
    specs = {name: spec for group in groups for name, spec in group.specs.items()}
    # as safetensors does: the widest dtypes first, so that every tensor is aligned when the file is mapped
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offsets, end = {}, 0
    for name in order:
        spec = specs[name]
        offsets[name], end = end, end + spec.nbytes
        entries[name] = {
            "dtype": _DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offsets[name], end],
        }
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    file.write(len(header).to_bytes(8, "little") + header)
    start, unsynced = 8 + len(header), 0

    def wrote(nbytes: int):
        nonlocal unsynced
        unsynced += nbytes
        if unsynced >= UNSYNCED:
            file.flush()
            os.fsync(file.fileno())
            unsynced = 0
        written(nbytes)

    for group in groups:
        for name, tensor in group.read().items():
            file.seek(start + offsets[name])
            _write(file, tensor, wrote)
    return start + end


def _write(file: BinaryIO, tensor: torch.Tensor, written: Callable[[int], None]):
    data = memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    for at in range(0, len(data), CHUNK):
        piece = data[at : at + CHUNK]
        file.write(piece)
        written(len(piece))
