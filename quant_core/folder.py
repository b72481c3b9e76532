"""Model folders of diffusers and transformers: ``config.json`` beside one or several safetensors files."""

from __future__ import annotations

import json
import os
import re
import reprlib
from typing import Any

from .errors import CheckpointError
from .header import PICKLE_REMEDY, require_regular

CONFIG = "config.json"
PIPELINE_INDEX = "model_index.json"
# as diffusers and transformers name them, first choice first
WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")
INDEX_SUFFIX = ".safetensors.index.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_INDEX = re.compile(r".+\.safetensors\.index(\.[\w-]+)?\.json")
LARGEST_JSON = 2 * 2**20  # bytes; the index of a FLUX takes 0.1 MB, of one packed with nested statistics 0.3
_INCOMPLETE_REMEDY = "The folder is incomplete or damaged: download it again."


def component_folder(path: str, component: str) -> str:
    """The folder of one model: ``path`` itself, or its subfolder ``component`` where ``path`` is a whole pipeline.

    Raises:
        CheckpointError: the pipeline has no such component.
    """
    if not os.path.isfile(os.path.join(path, PIPELINE_INDEX)):
        return path
    folder = os.path.join(path, component)
    if os.path.isfile(os.path.join(folder, CONFIG)):
        return folder
    raise CheckpointError(
        path,
        f"is a pipeline without a {component} folder.",
        f"Download the {component} folder of the pipeline too, with its {CONFIG}.",
    )


def is_model_folder(path: str) -> bool:
    return os.path.isfile(os.path.join(path, CONFIG))


def folder_config(path: str) -> dict[str, Any]:
    """``config.json``.

    Raises:
        CheckpointError: it is missing, or no JSON object.
    """
    return read_json(os.path.join(path, CONFIG))


def weight_files(path: str) -> tuple[list[str], frozenset[str]]:
    """(paths of the safetensors files of a model folder, tensors that its index promises).

    The index is not trusted: it can only name files beside it.

    Raises:
        CheckpointError: there are none, they are not known apart, or the index is unusable.
    """
    try:
        names = sorted(os.listdir(path))
    except OSError as error:
        raise CheckpointError(
            path, f"cannot be read ({error.strerror}).", "Check the path and its access rights."
        ) from error
    for weights in WEIGHTS:
        if weights in names:
            return [os.path.join(path, weights)], frozenset()
        index = weights.removesuffix(".safetensors") + INDEX_SUFFIX
        if index in names:
            return _indexed(path, index)
    # variants, such as diffusion_pytorch_model.fp16.safetensors
    indexes = [name for name in names if is_index(name)]
    files = [name for name in names if name.endswith(".safetensors")]
    if len(indexes) == 1:
        return _indexed(path, indexes[0])
    if len(files) == 1 and not indexes:
        return [os.path.join(path, files[0])], frozenset()
    if files:
        raise CheckpointError(
            path,
            f"holds several safetensors files and no index that tells how they belong together: {', '.join(files)}.",
            f"Name the one to use {WEIGHTS[0]}, or add the missing *{INDEX_SUFFIX}.",
        )
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise CheckpointError(path, f"holds its weights only as a pickle ({pickles[0]}).", PICKLE_REMEDY)
    raise CheckpointError(path, "holds no .safetensors file.", _INCOMPLETE_REMEDY)


def _indexed(path: str, index: str) -> tuple[list[str], frozenset[str]]:
    index_path = os.path.join(path, index)
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(index_path, "has no weight_map.", _INCOMPLETE_REMEDY)
    files = []
    # a name may come thousands of times; what is no text may not be hashable
    shards = dict.fromkeys(shard if isinstance(shard, str) else None for shard in weight_map.values())
    for shard in shards:
        if shard is None or not is_plain_file_name(shard):
            named = "something else than a file" if shard is None else f"the file {reprlib.repr(shard)}"
            raise CheckpointError(
                index_path,
                f"names {named}, which is no safetensors file beside it.",
                "Get the model from a source that you trust.",
            )
        files.append(os.path.join(path, shard))
        if not os.path.isfile(files[-1]):
            raise CheckpointError(path, f"lacks the file {shard}, which {index} names.", _INCOMPLETE_REMEDY)
    return files, frozenset(weight_map)


def is_index(name: str) -> bool:
    """Whether ``name`` is that of an index of shards, a variant's too: ``model.safetensors.index.fp16.json``."""
    return _INDEX.fullmatch(name) is not None


def is_plain_file_name(name: str) -> bool:
    """Whether ``name`` is a safetensors file's name without any directory in it, and shows as what it is."""
    return (
        name.endswith(".safetensors")
        and not set(name) & set("/\\:\0")
        and not name.startswith(".")
        and name.isprintable()
    )


def read_json(path: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: it cannot be read, is too large, or is something else.
    """
    require_regular(path)
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_JSON + 1)
        if len(content) > LARGEST_JSON:
            raise ValueError("it is too large")
        value = json.loads(content)
        if not isinstance(value, dict):
            raise ValueError("it is no object")
    except OSError as error:
        raise CheckpointError(path, f"cannot be read ({error.strerror}).", _INCOMPLETE_REMEDY) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"is no usable JSON ({error}).", _INCOMPLETE_REMEDY) from error
    return value
