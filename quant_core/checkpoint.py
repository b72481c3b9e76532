"""Opening models: safetensors only, headers first, tensors one at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import safe_open

from .errors import CheckpointError
from .folder import PIPELINE_INDEX, component_folder, folder_config, is_model_folder, weight_files
from .header import TensorInfo, explained, read_header


@dataclass(frozen=True)
class Checkpoint:
    """The headers of a model's safetensors file or files. No tensor data is read until :meth:`reader`.

    Attributes:
        path: the file, or the folder.
        tensors: every tensor, by name, from all files.
        metadata: the free-form text fields of the file's header, in a folder of that of the first file.
        config: the ``config.json`` of a folder; None for a single file.
    """

    path: str
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        return os.path.basename(os.path.normpath(self.path))

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """The opened files.

        Raises:
            CheckpointError: a file cannot be read any more.
        """
        with ExitStack() as files:
            yield Reader(self.tensors, files)


class Reader:
    """Reads single tensors, and opens each file once, when it is first needed."""

    def __init__(self, tensors: Mapping[str, TensorInfo], files: ExitStack):
        self._tensors = tensors
        self._files = files
        self._open: dict[str, Any] = {}

    def get_tensor(self, name: str) -> torch.Tensor:
        """One tensor on the CPU, mapped from its file.

        Raises:
            CheckpointError: the file cannot be read any more, or is not the one whose header was read.
        """
        info = self._tensors[name]
        path = info.file
        with explained(path):
            if path not in self._open:
                self._open[path] = self._files.enter_context(safe_open(path, framework="pt"))
            tensor = self._open[path].get_tensor(name)
        if tuple(tensor.shape) != info.shape or (info.dtype is not None and tensor.dtype != info.dtype):
            raise changed_file(path, name)
        return tensor

    def get(self, name: str, device: torch.device) -> torch.Tensor:
        """One tensor on ``device``; on the CPU it stays mapped."""
        return self.get_tensor(name).to(device)


def changed_file(path: str, name: str) -> CheckpointError:
    """For a file whose tensor ``name`` is not what its header said when the checkpoint was opened."""
    return CheckpointError(path, f"was changed while it was read, at {name}.", "Load it again.")


def open_checkpoint(path: str | os.PathLike, component: str = "") -> Checkpoint:
    """Read the header of a safetensors file, or the headers of all files of a diffusers or transformers folder.

    Args:
        component: subfolder to take where ``path`` is a whole pipeline, such as ``transformer``.

    Raises:
        CheckpointError: a file is missing, is no safetensors file, or is cut short.
    """
    path = os.fspath(path)
    if not os.path.isdir(path):
        return Checkpoint(path, *read_header(path))
    folder = component_folder(path, component) if component else path
    if not is_model_folder(folder):
        what = "a whole pipeline" if os.path.isfile(os.path.join(folder, PIPELINE_INDEX)) else "no model folder"
        raise CheckpointError(folder, f"is {what}: it has no config.json.", "Choose a folder that holds one model.")
    config = folder_config(folder)
    files, promised = weight_files(folder)
    tensors: dict[str, TensorInfo] = {}
    metadata: Mapping[str, str] = {}
    for file in files:
        found, fields = read_header(file)
        metadata = fields if file == files[0] else metadata
        twice = tensors.keys() & found.keys()
        if twice:
            raise CheckpointError(
                folder, f"holds the tensor {min(twice)} in two files.", "Get the model from a source that you trust."
            )
        tensors |= found
    missing = promised - tensors.keys()
    if missing:
        raise CheckpointError(
            folder,
            f"lacks the tensor {min(missing)}, which its index names.",
            "The folder is incomplete or damaged: download it again.",
        )
    return Checkpoint(folder, tensors, metadata, config)
