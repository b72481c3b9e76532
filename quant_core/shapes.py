"""Holding a checkpoint's header against the shapes that its configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from .checkpoint import Checkpoint, TensorInfo
from .errors import CheckpointError

SIXTEEN_BIT = (torch.bfloat16, torch.float16, torch.float32)


def require_shapes(
    checkpoint: Checkpoint, names: Mapping[str, str], expected: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Check that every expected tensor is there, of its shape and of a 16- or 32-bit float dtype.

    Args:
        names: model name -> name in the file.
        expected: model name -> shape.
        what: the model, for the message.

    Raises:
        CheckpointError: naming the first tensor that is missing or wrong.
    """
    for name, shape in expected.items():
        if name not in names:
            raise CheckpointError(
                checkpoint.path,
                f"lacks the tensor {name} of {what}.",
                "The file is incomplete: download it again, or choose another.",
            )
        info = checkpoint.tensors[names[name]]
        if info.shape != shape:
            raise CheckpointError(
                checkpoint.path,
                f"has the tensor {names[name]} in shape {info.shape}, but {what} needs {shape}.",
                "Choose a file of this model.",
            )
        if info.dtype not in SIXTEEN_BIT:
            found = "an unknown dtype" if info.dtype is None else str(info.dtype).removeprefix("torch.")
            raise CheckpointError(
                checkpoint.path,
                f"stores {names[name]} as {found}, which cannot be quantized.",
                "Use the model's bfloat16, float16 or float32 file.",
            )


def shape_of(checkpoint: Checkpoint, name: str, dimensions: int = 2) -> tuple[int, ...]:
    """The shape of one tensor that a configuration is read from.

    Raises:
        CheckpointError: it is missing, or has another number of dimensions.
    """
    info: TensorInfo | None = checkpoint.tensors.get(name)
    if info is None or len(info.shape) != dimensions or 0 in info.shape:
        found = "is missing" if info is None else f"has shape {info.shape}"
        raise CheckpointError(
            checkpoint.path,
            f"cannot be understood: the tensor {name} {found}.",
            "The file is incomplete or of another model: choose another.",
        )
    return info.shape
