"""Opening model files: safetensors only, header first, tensors one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from safetensors import SafetensorError, safe_open

from .errors import CheckpointError

# what a safetensors header calls the dtypes that weights come in
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

# first bytes of files that are something else
_FOREIGN_FORMATS = {
    b"PK\x03\x04": "a PyTorch pickle",
    b"\x80": "a pickle",
    b"GGUF": "a GGUF file",
}
_REMEDIES = {
    "a GGUF file": "Load it with ComfyUI-GGUF, or use the model's 16-bit .safetensors file.",
}
_PICKLE_REMEDY = (
    "Pickles can run code when they are opened, so only .safetensors files are read. "
    "Download the model's .safetensors file, or convert this one with a tool that you trust."
)
_DAMAGED_REMEDY = "The file is damaged or not fully downloaded: download it again."


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor. ``dtype`` is None for one that torch does not know."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None


@dataclass(frozen=True)
class Checkpoint:
    """The header of one safetensors file. No tensor data is read until :meth:`reader`.

    Attributes:
        path: the file.
        tensors: every tensor, by name.
        metadata: the header's free-form text fields.
    """

    path: str
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @contextmanager
    def reader(self, device: torch.device | str = "cpu") -> Iterator[safe_open]:
        """The opened file; ``get_tensor(name)`` on it maps one tensor from the file.

        Raises:
            CheckpointError: the file cannot be read any more.
        """
        with _explained(self.path), safe_open(self.path, framework="pt", device=str(device)) as file:
            yield file


def open_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Read the header of a safetensors file.

    Raises:
        CheckpointError: the file is missing, is no safetensors file, or is cut short.
    """
    path = os.fspath(path)
    _refuse_foreign_formats(path)
    with _explained(path), safe_open(path, framework="pt") as file:
        tensors = {}
        for name in file.keys():
            part = file.get_slice(name)
            tensors[name] = TensorInfo(tuple(part.get_shape()), DTYPES.get(part.get_dtype()))
        return Checkpoint(path, tensors, file.metadata() or {})


def _refuse_foreign_formats(path: str):
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(
            path, f"cannot be read ({error.strerror}).", "Check the path and its access rights."
        ) from error
    if len(start) < 9:
        raise CheckpointError(path, "is empty.", _DAMAGED_REMEDY)
    # a safetensors header starts with its length, eight bytes, and a brace
    if start[8:9] == b"{":
        return
    for magic, what in _FOREIGN_FORMATS.items():
        if start.startswith(magic):
            raise CheckpointError(path, f"is {what}, not a safetensors file.", _REMEDIES.get(what, _PICKLE_REMEDY))
    raise CheckpointError(path, "is not a safetensors file.", "Use the model's .safetensors file.")


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(path, f"cannot be read as safetensors ({error}).", _DAMAGED_REMEDY) from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error}).", _DAMAGED_REMEDY) from error
