"""How a queued workflow ends: with what it made, refused, or failed."""

from __future__ import annotations

import io
from dataclasses import dataclass

Graph = dict[str, dict]


class PromptRejected(Exception):
    """The host refused a workflow before running it; the message lists what is wrong at which node.

    `problems` has the same as (node id, message); the node id is None for what concerns the whole workflow.
    """

    def __init__(self, problems: list[tuple[str | None, str]], graph: Graph):
        def at(node_id: str | None) -> str:
            return "" if node_id is None else f"{graph.get(node_id, {}).get('class_type')} ({node_id}): "

        super().__init__("\n".join(at(node_id) + message for node_id, message in problems))
        self.problems = problems


class PromptFailed(Exception):
    """A node raised while a workflow ran; the message is the node's own."""

    def __init__(self, event: dict):
        super().__init__(event["exception_message"].strip())
        self.node_id: str = event["node_id"]
        self.node_type: str = event["node_type"]
        self.exception_type: str = event["exception_type"]
        self.traceback: str = "".join(event["traceback"])


@dataclass(frozen=True)
class OutputFile:
    """A file that a node made: the node, under which key it told of it ("images", …), its name and its bytes."""

    node_id: str
    kind: str
    name: str
    data: bytes


@dataclass(frozen=True)
class Finished:
    """What a workflow left behind: the host's history entry, and the files that its nodes told of."""

    prompt_id: str
    history: dict
    saved: list[OutputFile]

    @property
    def outputs(self) -> dict[str, dict]:
        """What each node reported to the canvas, by node id."""
        return self.history["outputs"]

    @property
    def files(self) -> list[bytes]:
        """The saved images as encoded files, in the order in which they were saved."""
        return [file.data for file in self.saved if file.kind == "images"]

    @property
    def images(self) -> list:
        """The saved images as RGB `PIL.Image.Image`, in the same order."""
        from PIL import Image  # here, since the command line needs none

        return [Image.open(io.BytesIO(data)).convert("RGB") for data in self.files]
