"""What a finished workflow made, on this machine: its files in a folder, its texts on standard output."""

from __future__ import annotations

import itertools
from pathlib import Path

from .graph import node_title
from .results import Finished, Graph


def save_files(finished: Finished, folder: Path, prefix: str = "") -> list[Path]:
    """Write the files of a finished workflow into `folder`, in order, and return their paths.

    A file is called what the server calls it, after `prefix`; one that exists is kept, and the new one numbered.
    """
    return [_write_new(folder, prefix + _base_name(file.name), file.data) for file in finished.saved]


def texts(finished: Finished, graph: Graph) -> list[str]:
    """Return the texts that nodes showed, each once and under its node's title: on its line if it is but one."""
    shown: dict[str, str] = {}
    for node_id, output in finished.outputs.items():
        found = output.get("text", [])
        for text in [found] if isinstance(found, str) else found:
            if isinstance(text, str) and text.strip():
                shown.setdefault(text, node_title(graph, node_id))
    return [f"{title}:{chr(10) if chr(10) in text else ' '}{text}" for text, title in shown.items()]


def _base_name(name: str) -> str:
    """The name without folders, as a server of any system writes them."""
    return name.replace("\\", "/").rpartition("/")[2]


def _write_new(folder: Path, name: str, data: bytes) -> Path:
    stem, suffix = Path(name).stem, Path(name).suffix
    for number in itertools.count(1):
        path = folder / (name if number == 1 else f"{stem}_{number}{suffix}")
        try:
            file = path.open("xb")
        except FileExistsError:
            continue
        try:
            with file:
                file.write(data)
        except BaseException:
            path.unlink()
            raise
        return path
    raise AssertionError("numbers do not end")
