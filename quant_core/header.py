"""The header of one safetensors file: what tensors it holds, before any of them is read."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

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

LARGEST_HEADER = 4 * 2**20  # bytes; the largest known, of an all-in-one NF4 checkpoint, takes 0.5 MB
_LARGEST_EXPLAINED = 2**20  # bytes; JSON that safetensors refused may unfold to 30 times its size here
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
        CheckpointError: the file is missing, is no safetensors file, is cut short, or its header contradicts itself.
    """
    header, data_size = raw_header(path)
    tensors: dict[str, TensorInfo] = {}
    with explained(path):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():
                    part = file.get_slice(name)
                    tensors[name] = TensorInfo(tuple(part.get_shape()), DTYPES.get(part.get_dtype()), path)
                metadata = file.metadata() or {}
        except SafetensorError:
            # safetensors seldom says which tensor it stumbled over
            if len(header) <= _LARGEST_EXPLAINED:
                _require_consistent(path, header, data_size, refused=True)
            raise
        # what safetensors accepts, but leaves open: a name that is given twice
        _require_consistent(path, header, data_size)
    return tensors, metadata


def require_regular(path: str) -> None:
    """Check that opening ``path`` gives a file: a pipe would wait for its writer for ever, a device never ends.

    Raises:
        CheckpointError: it is missing, or something else.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:
        raise CheckpointError(
            path,
            f"cannot be read ({getattr(error, 'strerror', None) or error}).",
            "Check the path and its access rights.",
        ) from error
    if not stat.S_ISREG(mode):
        raise CheckpointError(path, "cannot be read: it is no regular file.", "Choose a file, and no folder or device.")


def raw_header(path: str) -> tuple[bytes, int]:
    """(the JSON text of the header, bytes that follow it) of a safetensors file; neither is checked yet.

    Raises:
        CheckpointError: the file is missing, is no safetensors file, or its header is cut short or too long.
    """
    require_regular(path)
    try:
        with open(path, "rb") as file:
            start = file.read(9)
            _require_format(path, start)
            length = int.from_bytes(start[:8], "little")
            data_size = os.fstat(file.fileno()).st_size - 8 - length
            if data_size < 0:
                raise CheckpointError(path, f"ends within its header of {length} bytes.", DAMAGED_REMEDY)
            if length > LARGEST_HEADER:
                raise CheckpointError(
                    path,
                    f"has a header of {length} bytes, but that of a model takes less than {LARGEST_HEADER}.",
                    "Get the model from a source that you trust.",
                )
            return start[8:] + file.read(length - 1), data_size
    except OSError as error:
        raise CheckpointError(
            path, f"cannot be read ({error.strerror}).", "Check the path and its access rights."
        ) from error


def tensor_places(path: str) -> dict[str, tuple[TensorInfo, int]]:
    """name -> (what the header says of the tensor, where its bytes begin in the file), checked.

    Raises:
        CheckpointError: as :func:`read_header`.
    """
    header, data_size = raw_header(path)
    return {
        name: (
            TensorInfo(tuple(entry["shape"]), DTYPES.get(entry["dtype"]), path),
            8 + len(header) + entry["data_offsets"][0],
        )
        for name, entry in _require_consistent(path, header, data_size).items()
    }


def _require_format(path: str, start: bytes):
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


def _require_consistent(path: str, header: bytes, data_size: int, refused: bool = False) -> dict[str, dict[str, Any]]:
    """Check that each tensor is named once, has the bytes that it says, and that they follow each other.

    Args:
        refused: whether safetensors did refuse the header, so that a dtype unknown here is to blame if nothing else is.

    Returns:
        name -> its entry.
    """

    def refuse(cause: str):
        raise CheckpointError(path, f"cannot be read as safetensors: {cause}.", DAMAGED_REMEDY)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                refuse(f"its header has two entries {_short(name)}")
            found[name] = value
        return found

    try:
        entries = json.loads(header, object_pairs_hook=once)
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        refuse(f"its header is no usable JSON ({error})")
    metadata = entries.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        refuse("its __metadata__ holds something else than texts")
    for name, entry in entries.items():
        fault = _fault(entry, data_size)
        if fault:
            refuse(f"its entry for {_short(name)} {fault}")
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["data_offsets"][0] != end:
            refuse(f"the bytes of {_short(name)} do not begin where those before them end")
        end = entry["data_offsets"][1]
    if end != data_size:
        refuse(f"its tensors take {end} bytes, but {data_size} follow the header")
    unknown = next((name for name, entry in entries.items() if entry["dtype"] not in DTYPES), None)
    if refused and unknown is not None:
        dtype = _short(entries[unknown]["dtype"])
        refuse(f"its entry for {_short(unknown)} has the dtype {dtype}, which is none or does not fill its bytes")
    return entries


def _fault(entry: Any, data_size: int) -> str | None:
    """What is wrong with a tensor's entry in a header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return "does not tell dtype, shape and data_offsets"
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str):
        return "has no dtype"
    if not _is_sizes(shape):
        return "has no usable shape"
    if not _is_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_size:
        return f"has data_offsets that are not within the {data_size} bytes of data"
    size = offsets[1] - offsets[0]
    if dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != size:
        return f"says {dtype} of shape {_short(shape)}, which does not fill its {size} bytes"
    return None


def _is_sizes(value: Any) -> bool:
    # torch has 64 dimensions at most
    return isinstance(value, list) and len(value) <= 64 and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) and value.isprintable() else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
