"""Model files as the host lists them."""

from __future__ import annotations

import os

import folder_paths

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
