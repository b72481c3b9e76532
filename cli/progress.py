"""One line on the terminal that says what is being done."""

from __future__ import annotations

import shutil
from typing import TextIO

from .graph import node_title
from .results import Graph


class Progress:
    """Shows on `stream`, if that is a terminal, what is being done; writes nothing otherwise. A context manager."""

    def __init__(self, stream: TextIO, quiet: bool = False):
        self._stream = stream
        self._shown = stream.isatty() and not quiet

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.clear()

    def show(self, text: str) -> None:
        """Replace the line."""
        if self._shown:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r{text[:width]:<{width}}\r{text[:width]}")
            self._stream.flush()

    def clear(self) -> None:
        """Leave an empty line, for what is printed next."""
        if self._shown:
            self.show("")


class NodeProgress:
    """The hooks of a client's run: which node of the graph runs, and its step."""

    def __init__(self, progress: Progress, graph: Graph, prefix: str = ""):
        self._progress = progress
        self._graph = graph
        self._prefix = prefix

    def on_node(self, node_id: str) -> None:
        """Show that a node begins."""
        self._progress.show(f"{self._prefix}{node_title(self._graph, node_id)}")

    def on_progress(self, node_id: str, done: int, total: int) -> None:
        """Show the step of a node."""
        self._progress.show(f"{self._prefix}{node_title(self._graph, node_id)}: {done:g}/{total:g}")
