"""Holding a checkpoint's tensors against the shapes that a model's configuration asks for."""

from __future__ import annotations

from collections.abc import Mapping

from .assembly import Assembly
from .errors import CheckpointError
from .stored.plain import SIXTEEN_BIT


def require_shapes(
    path: str, tensors: Mapping[str, Assembly], expected: Mapping[str, tuple[int, ...]], what: str
) -> None:
    """Check that every expected tensor is there, of its shape, and packed or of a 16- or 32-bit float dtype.

    Args:
        path: the file, for the message.
        tensors: by the model's names.
        expected: model name -> shape.
        what: the model, for the message.

    Raises:
        CheckpointError: naming the first tensor that is missing or wrong.
    """
    for name, shape in expected.items():
        if name not in tensors:
            raise CheckpointError(
                path,
                f"lacks the tensor {name} of {what}.",
                "The file is incomplete, or one part of a model in several files (then choose its folder): "
                "download it again, or choose another.",
            )
        tensor = tensors[name]
        # before the shape, which is not the weight's own where several numbers share a byte
        wrong = next((part for part in tensor.parts if part.dtype not in SIXTEEN_BIT), None)
        if wrong is not None:
            found = "an unknown dtype" if wrong.dtype is None else str(wrong.dtype).removeprefix("torch.")
            raise CheckpointError(
                path,
                f"stores {wrong.name} as {found}, which cannot be read as a weight.",
                "Use the model's bfloat16, float16 or float32 file, or one that bitsandbytes packed.",
            )
        if tensor.shape != shape:
            raise CheckpointError(
                path,
                f"has the tensor {tensor.name} in shape {tensor.shape}, but {what} needs {shape}.",
                "Choose a file of this model.",
            )


def shape_of(path: str, tensors: Mapping[str, Assembly], name: str, dimensions: int = 2) -> tuple[int, ...]:
    """The shape of one tensor that a configuration is read from.

    Raises:
        CheckpointError: it is missing, or has another number of dimensions.
    """
    tensor = tensors.get(name)
    if tensor is None or len(tensor.shape) != dimensions or 0 in tensor.shape:
        found = "is missing" if tensor is None else f"has shape {tensor.shape}"
        raise CheckpointError(
            path,
            f"cannot be understood: the tensor {name} {found}.",
            "The file is incomplete or of another model: choose another.",
        )
    return tensor.shape
