"""The header of one safetensors file: what tensors it holds, before any of them is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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

DAMAGED_REMEDY = "The file is damaged or not fully downloaded: download it again."

# first bytes of files that are something else
_FOREIGN_FORMATS = {
    b"PK\x03\x04": "a PyTorch pickle",
    b"\x80": "a pickle",
    b"GGUF": "a GGUF file",
}
_REMEDIES = {
    "a GGUF file": "Load it with ComfyUI-GGUF, or use the model's 16-bit .safetensors file.",
}
PICKLE_REMEDY = (
    "Pickles can run code when they are opened, so only .safetensors files are read. "
    "Download the model's .safetensors file, or convert this one with a tool that you trust."
)


@dataclass(frozen=True)
class TensorInfo:
    """What the header says of one tensor. ``dtype`` is None for one that torch does not know."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    file: str = ""


def read_header(path: str) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """(tensors by name, free-form text fields) of a safetensors file.

    Raises:
        CheckpointError: the file is missing, is no safetensors file, or is cut short.
    """
    _refuse_foreign_formats(path)
    with explained(path), safe_open(path, framework="pt") as file:
        tensors = {}
        for name in file.keys():
            part = file.get_slice(name)
            tensors[name] = TensorInfo(tuple(part.get_shape()), DTYPES.get(part.get_dtype()), path)
        return tensors, file.metadata() or {}


def _refuse_foreign_formats(path: str):
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(
            path, f"cannot be read ({error.strerror}).", "Check the path and its access rights."
        ) from error
    if len(start) < 9:
        raise CheckpointError(path, "is empty.", DAMAGED_REMEDY)
    # a safetensors header starts with its length, eight bytes, and a brace
    if start[8:9] == b"{":
        return
    for magic, what in _FOREIGN_FORMATS.items():
        if start.startswith(magic):
            raise CheckpointError(path, f"is {what}, not a safetensors file.", _REMEDIES.get(what, PICKLE_REMEDY))
    raise CheckpointError(path, "is not a safetensors file.", "Use the model's .safetensors file.")


@contextmanager
def explained(path: str) -> Iterator[None]:
    """Turn what reading a safetensors file may raise into CheckpointErrors."""
    try:
        yield
    except SafetensorError as error:
        raise CheckpointError(path, f"cannot be read as safetensors ({error}).", DAMAGED_REMEDY) from error
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error}).", DAMAGED_REMEDY) from error
