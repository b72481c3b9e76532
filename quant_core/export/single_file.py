"""One safetensors file: the model as it is, under the names that it has here, with its config beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch

from ..layouts import is_packed
from .atomic import atomic_file, require_space
from .provenance import Provenance
from .tensors import group
from .writer import write_safetensors

Progress = Callable[[int, int], None]


def save_single_file(
    path: str | os.PathLike,
    tensors: Mapping[str, torch.Tensor],
    provenance: Provenance,
    progress: Progress | None = None,
) -> int:
    """Write a model to one file, in the place of one that is there. Loading it gives the same bits and packs nothing.

    Args:
        tensors: by the model's names, packed or plain, on any device.
        progress: called with (bytes written, bytes in all); what it raises ends the saving and leaves no file.

    Returns:
        bytes of the file.

    Raises:
        SaveError: it cannot be written; the old file is as it was.
    """
    groups = [group(name, lambda tensor=tensor: tensor) for name, tensor in tensors.items()]
    total = sum(g.nbytes for g in groups)
    require_space(path, total)
    plain = [module for module in provenance.model.linear_shapes() if not is_packed(tensors[f"{module}.weight"])]
    with atomic_file(path) as file:
        return write_safetensors(file, groups, provenance.metadata(plain), counter(total, progress))


def counter(total: int, progress: Progress | None) -> Callable[[int], None]:
    """A function to call with bytes that have been written; it tells ``progress`` the sum."""
    done = 0

    def written(nbytes: int):
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    return written
