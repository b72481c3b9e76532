"""The models that a node offers: files and model folders in the host's own folders, or a repository on the Hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import folder_paths

from ...quant_core.checkpoint import Checkpoint, open_checkpoint
from ...quant_core.errors import CheckpointError, ConfigError
from ...quant_core.folder import PIPELINE_INDEX, folder_config, is_model_folder
from ...quant_core.header import raw_header, read_header
from ...quant_core.hub import hub_path
from ...quant_core.identify import CLIP_L, FLUX, T5, Kind
from ...quant_core.mixed import COSTS_SUFFIX
from .progress import progress_bar

# the combo's last choice: a workflow with a repository then needs no file of its own, here and on other machines
FROM_HUB = "(from hub_repo)"
DEEPEST = 4  # folders below a model folder that are looked at
_IN_ALL_IN_ONE = (FLUX, T5, CLIP_L)


@dataclass(frozen=True)
class Offer:
    """What one combo offers.

    Attributes:
        folder: the host's folder of single files; model folders are looked for there and in ``diffusers``.
        kind: the model; all-in-one files of the ``checkpoints`` folder that hold it are offered too.
        is_config: whether a ``config.json`` is that of such a model.
    """

    folder: str
    kind: Kind
    is_config: Callable[[Mapping[str, Any]], bool]


TRANSFORMERS = Offer("diffusion_models", FLUX, lambda config: config.get("_class_name") == "FluxTransformer2DModel")
T5S = Offer("text_encoders", T5, lambda config: config.get("model_type") == "t5")
CLIP_LS = Offer("text_encoders", CLIP_L, lambda config: config.get("model_type") in ("clip", "clip_text_model"))


def names(offer: Offer, hub: bool = True) -> list[str]:
    """What the combo lists: files, then all-in-one files, then folders, then the Hub."""
    return [*_paths(offer), *([FROM_HUB] if hub else [])]


def chosen(offer: Offer, name: str, hub_repo: str = "") -> Checkpoint:
    """The opened model: from the Hub if ``hub_repo`` is filled in, else the one that the combo lists.

    Raises:
        ConfigError: nothing is chosen, or the listed model is gone.
        HubError: nothing can be had from ``hub_repo``.
        CheckpointError: the file or folder cannot be read.
    """
    hub_repo = hub_repo.strip()
    path = hub_path(hub_repo, offer.kind, progress_bar()) if hub_repo else _path(offer, name)
    return open_checkpoint(path, offer.kind.component)


def chosen_fingerprint(offer: Offer, name: str | None, hub_repo: str | None = "") -> tuple:
    """Changes when another model is chosen, or a file of it changes, that of its costs too.

    A repository counts by its name: the Hub is not asked. What another node gives is None here, and always counts the
    same: the host looks at that node.
    """
    if hub_repo is None:
        return ()
    hub_repo = hub_repo.strip()
    if hub_repo:
        return (hub_repo,)
    if name is None:
        return ()
    path = _path(offer, name)
    costs = os.path.normpath(path) + COSTS_SUFFIX
    return (path, *(_state(file) for file in [*_files(path), *([costs] if os.path.isfile(costs) else [])]))


def _path(offer: Offer, name: str) -> str:
    paths = _paths(offer)
    if name in paths:
        return paths[name]
    if name == FROM_HUB:
        raise ConfigError(f"{FROM_HUB} is chosen, but hub_repo is empty. Write a repository's name, or choose a file.")
    raise ConfigError(
        f"{name} is in none of the host's folders for {offer.kind.description.split(' ', 1)[1]}s "
        f"({offer.folder}, diffusers, checkpoints). Choose one that the list shows; reload the page to refresh it."
    )


def _paths(offer: Offer) -> dict[str, str]:
    """Listed name -> full path."""
    folders = _model_folders(offer)
    inside = tuple(path + os.sep for path in folders.values())
    paths: dict[str, str] = {}
    for name in folder_paths.get_filename_list(offer.folder):
        path = folder_paths.get_full_path(offer.folder, name)
        # shards, which mean nothing alone
        if path and not path.startswith(inside):
            paths[name] = path
    for name in folder_paths.get_filename_list("checkpoints"):
        path = folder_paths.get_full_path("checkpoints", name)
        if path and name.endswith(".safetensors") and offer.kind in _held(*_state(path)):
            paths.setdefault(name, path)
    for name, path in folders.items():
        paths.setdefault(name, path)
    return paths


def _model_folders(offer: Offer) -> dict[str, str]:
    """Model folders and pipelines, by their path below the host's folder."""
    found: dict[str, str] = {}
    for key in (offer.folder, "diffusers"):
        for root in folder_paths.get_folder_paths(key):
            for path in _subfolders(root, DEEPEST):
                model = os.path.join(path, offer.kind.component) if _is_pipeline(path) else path
                if is_model_folder(model) and _is_offered(model, offer):
                    found.setdefault(os.path.relpath(path, root).replace(os.sep, "/"), path)
    return dict(sorted(found.items()))


def _subfolders(root: str, depth: int) -> Iterator[str]:
    """Folders below ``root``; of a pipeline or a model only itself."""
    try:
        children = [entry.path for entry in os.scandir(root) if entry.is_dir()]
    except OSError:
        # not there, or not ours to read: there is nothing to offer
        return
    for child in sorted(children):
        yield child
        if depth > 1 and not _is_pipeline(child) and not is_model_folder(child):
            yield from _subfolders(child, depth - 1)


def _is_pipeline(path: str) -> bool:
    return os.path.isfile(os.path.join(path, PIPELINE_INDEX))


def _is_offered(path: str, offer: Offer) -> bool:
    try:
        return offer.is_config(folder_config(path))
    except CheckpointError:
        return False


@lru_cache(maxsize=4096)
def _held(path: str, modified: int, size: int) -> frozenset[Kind]:
    """The models in an all-in-one file; ``modified`` and ``size`` make a changed file be looked at again."""
    markers = {prefix + kind.marker: kind for kind in _IN_ALL_IN_ONE for prefix in kind.prefixes}
    try:
        # most files are of other models: parsing the headers of them all would take seconds when the host starts
        header, _ = raw_header(path)
        if not any(f'"{name}"'.encode() in header for name in markers):
            return frozenset()
        tensors, _ = read_header(path)
    except CheckpointError:
        return frozenset()
    return frozenset(kind for name, kind in markers.items() if name in tensors)


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    found = (os.path.join(folder, name) for folder, _, files in os.walk(path) for name in files)
    # of a folder of links, the target of one may be gone
    return sorted(file for file in found if os.path.isfile(file))


def _state(path: str) -> tuple[str, int, int]:
    """(path, modification time in ns, bytes)"""
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_size
