"""Model folders that diffusers and transformers load: ``config.json``, one or several files of weights, their index."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import torch
from huggingface_hub import split_state_dict_into_shards_factory

from ..errors import ConfigError
from ..flux.config import FluxConfig
from ..folder import CONFIG, INDEX_SUFFIX
from ..layouts import is_packed
from .atomic import PARTIAL, atomic_folder, require_space
from .contents import FolderContents
from .flux import flux_contents
from .provenance import Provenance, wire_config
from .single_file import Progress, counter
from .t5 import t5_contents
from .tensors import Group
from .writer import write_safetensors

SHARD_SIZE = "5GB"  # diffusers' and transformers' own for many years


def save_diffusers_folder(
    path: str | os.PathLike,
    tensors: Mapping[str, torch.Tensor],
    provenance: Provenance,
    shard_size: int | str = SHARD_SIZE,
    progress: Progress | None = None,
) -> int:
    """Write a FLUX as a folder of diffusers, or a T5 as one of transformers, packed as it is.

    ``from_pretrained`` of those libraries then gives the same dequantized weights, bit for bit. What they cannot hold
    packed is dequantized and logged, see :func:`flux_contents` and :func:`t5_contents`.

    Args:
        tensors: by the model's names, packed or plain, on any device.
        shard_size: largest size of a file, in bytes or as text such as ``5GB``. A weight stays with its statistics.
        progress: called with (bytes written, bytes in all); what it raises ends the saving and leaves no folder.

    Returns:
        bytes of the folder's files.

    Raises:
        SaveError: the folder exists already, or cannot be written.
        ConfigError: diffusers has no model of these sizes, or the layers are packed to both 4 and 8 bit.
    """
    _require_one_precision(tensors)
    make = flux_contents if isinstance(provenance.model, FluxConfig) else t5_contents
    contents = make(tensors, provenance.model)
    total = sum(group.nbytes for group in contents.groups)
    require_space(path, total)
    written = counter(total, progress)
    metadata = provenance.metadata(contents.plain_modules)
    with atomic_folder(path) as folder:
        for name, groups in shards(contents, shard_size).items():
            with open(os.path.join(folder, name + PARTIAL), "xb") as file:
                write_safetensors(file, groups, metadata, written)
                file.flush()
                os.fsync(file.fileno())
        for name, value in _json_files(contents, provenance, shard_size).items():
            with open(os.path.join(folder, name + PARTIAL), "x", encoding="utf-8") as file:
                json.dump(value, file, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
        return sum(entry.stat().st_size for entry in os.scandir(folder))


def _require_one_precision(tensors: Mapping[str, torch.Tensor]):
    if len({tensor.layout_cls for tensor in tensors.values() if is_packed(tensor)}) > 1:
        raise ConfigError(
            "This model has layers of both 4 and 8 bit, which diffusers' and transformers' BitsAndBytesConfig cannot "
            "say. Save it as a single file."
        )


def shards(contents: FolderContents, shard_size: int | str) -> dict[str, list[Group]]:
    """File name -> the groups in it."""
    by_name = {next(iter(group.specs)): group for group in contents.groups}
    split = split_state_dict_into_shards_factory(
        by_name,
        get_storage_size=lambda group: group.nbytes,
        filename_pattern=contents.stem + "{suffix}.safetensors",
        max_shard_size=shard_size,
    )
    return {file: [by_name[name] for name in names] for file, names in split.filename_to_tensors.items()}


def _json_files(contents: FolderContents, provenance: Provenance, shard_size: int | str) -> dict[str, dict]:
    files = {}
    by_file = shards(contents, shard_size)
    if len(by_file) > 1:
        files[contents.stem + INDEX_SUFFIX] = {
            "metadata": {"total_size": sum(group.nbytes for group in contents.groups)},
            "weight_map": {name: file for file, groups in by_file.items() for group in groups for name in group.specs},
        }
    config = dict(contents.config)
    if provenance.config.precision != "none":
        config["quantization_config"] = wire_config(provenance.config, contents.plain_modules, contents.is_transformers)
    # last: a folder without it is no model yet
    return files | {CONFIG: config}
