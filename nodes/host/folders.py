"""Model files as the host lists them."""

from __future__ import annotations

import os

import folder_paths

from ...quant_core.hub import hub_file
from ...quant_core.identify import Kind
from .progress import progress_bar

TRANSFORMERS = "diffusion_models"
TEXT_ENCODERS = "text_encoders"


def file_names(folder: str) -> list[str]:
    """The files of a model folder, for a combo."""
    return folder_paths.get_filename_list(folder)


def file_path(folder: str, name: str) -> str:
    """The full path of a file that the combo lists.

    Raises:
        FileNotFoundError: it is gone.
    """
    return folder_paths.get_full_path_or_raise(folder, name)


def fingerprint(folder: str, name: str) -> tuple[str, int, int]:
    """Changes when the file does: (path, modification time in ns, bytes)."""
    path = file_path(folder, name)
    status = os.stat(path)
    return path, status.st_mtime_ns, status.st_size


def chosen_path(folder: str, name: str, hub_repo: str, wanted: Kind) -> str:
    """The full path of a node's file: from the Hub if ``hub_repo`` is filled in, else the one that the combo lists.

    Raises:
        FileNotFoundError: the listed file is gone.
        ConfigError, HubError: nothing can be had from ``hub_repo``.
    """
    hub_repo = hub_repo.strip()
    return hub_file(hub_repo, wanted, progress_bar()) if hub_repo else file_path(folder, name)


def chosen_fingerprint(folder: str, name: str, hub_repo: str) -> tuple:
    """Changes when another file is chosen. A repository counts by its name: the Hub is not asked."""
    hub_repo = hub_repo.strip()
    return (hub_repo,) if hub_repo else ("", *fingerprint(folder, name))
