"""Which of a repository's folders are models in the layout of diffusers or transformers, and which files they need."""

from __future__ import annotations

import posixpath
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..folder import CONFIG, INDEX_SUFFIX, PICKLES, WEIGHTS, is_index, is_plain_file_name
from ..identify import FLUX, T5, Kind
from .listing import Listing
from .repo import HubError, Repo

_SHOWN = 12  # names that a message lists


class UnusableFolder(Exception):
    """A folder cannot be taken; the text says which and why, without a full stop."""


@dataclass(frozen=True)
class ModelFolder:
    """A folder with the wanted model's config.json. ``path`` in the repository is empty for its root."""

    path: str
    packed: bool


def model_folder(listing: Listing, path: str, wanted: Kind) -> ModelFolder | None:
    """The folder at ``path``; None if it has no config.json.

    Raises:
        UnusableFolder: it is another model's, or packed in a way that cannot be read.
        HubError: its config.json is unusable.
    """
    config_path = posixpath.join(path, CONFIG)
    if config_path not in listing.names:
        return None
    config = listing.json(config_path)
    if not _is_config_of(config, wanted):
        what = config.get("_class_name") or config.get("architectures") or config.get("model_type")
        raise UnusableFolder(f"{config_path} is that of {reprlib.repr(what) if what else 'something else'}")
    quantization = config.get("quantization_config")
    if quantization is None:
        return ModelFolder(path, packed=False)
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else quantization
    # early configs do not name the method
    if method not in ("bitsandbytes", None):
        raise UnusableFolder(f"{shown(path)} is packed by {reprlib.repr(method)}, and not by bitsandbytes")
    return ModelFolder(path, packed=True)


def needed_files(listing: Listing, repo: Repo, folder: ModelFolder) -> tuple[str, ...]:
    """Paths in the repository: config.json first, then the index if there is one, then the weights.

    Raises:
        UnusableFolder: not all weights are there as .safetensors files.
        HubError: the index is unusable; it is not trusted, and can only name files beside it.
    """
    config = posixpath.join(folder.path, CONFIG)
    names = {posixpath.basename(path) for path in listing.names if posixpath.dirname(path) == folder.path}
    # in the order in which the loaders look for them, see folder.weight_files
    for weights in WEIGHTS:
        if weights in names:
            return (config, posixpath.join(folder.path, weights))
        index = weights.removesuffix(".safetensors") + INDEX_SUFFIX
        if index in names:
            return (config, *_indexed(listing, repo, folder.path, index))
    # variants, such as diffusion_pytorch_model.fp16.safetensors
    indexes = [name for name in names if is_index(name)]
    if len(indexes) == 1:
        return (config, *_indexed(listing, repo, folder.path, indexes[0]))
    files = [name for name in names if is_plain_file_name(name)]
    if len(files) == 1 and not indexes:
        return (config, posixpath.join(folder.path, files[0]))
    pickles = [name for name in names if name.endswith(PICKLES)]
    if files:
        raise UnusableFolder(f"no index joins the files {listed(files)} of {shown(folder.path)}")
    if pickles:
        raise UnusableFolder(f"{shown(folder.path)} has its weights only as pickles ({listed(pickles)})")
    raise UnusableFolder(f"{shown(folder.path)} has a {CONFIG}, but no .safetensors file")


def _indexed(listing: Listing, repo: Repo, folder: str, index: str) -> list[str]:
    path = posixpath.join(folder, index)
    weight_map = listing.json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise HubError(repo.text, f"{path} has no weight_map.", "The folder is damaged: choose another.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not is_plain_file_name(shard):
            raise HubError(
                repo.text,
                f"{path} names {reprlib.repr(shard)}, which is no .safetensors file beside it.",
                "Get the model from a source that you trust.",
            )
    shards = sorted(set(weight_map.values()))
    missing = [shard for shard in shards if posixpath.join(folder, shard) not in listing.names]
    if missing:
        raise UnusableFolder(f"{shown(folder)} lacks {listed(missing)}, which {path} names")
    return [path, *(posixpath.join(folder, shard) for shard in shards)]


def _is_config_of(config: Mapping[str, Any], wanted: Kind) -> bool:
    if wanted is FLUX:
        return config.get("_class_name") == "FluxTransformer2DModel"
    if wanted is T5:
        return config.get("model_type") == "t5" or config.get("architectures") == ["T5EncoderModel"]
    return False


def shown(folder: str) -> str:
    return f"{folder}/" if folder else "its root"


def listed(items: list) -> str:
    texts = sorted(map(str, items))
    rest = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
