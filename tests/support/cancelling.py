"""Large models that take no time to make, and the cancel button of a host that is at work on them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
import torch
from comfy_client import ComfyClient, Graph


@dataclass
class Cancelled:
    """A workflow that was interrupted.

    Attributes:
        seen: values of the node's bar, from 0 to 1, without repetition.
        seconds: from the interrupt to the end of the workflow.
    """

    seen: list[float] = field(default_factory=list)
    seconds: float = 0.0


def cancel(client: ComfyClient, graph: Graph, node_id: str, values: int = 2) -> Cancelled:
    """Interrupt the workflow once the bar of the node has been seen at so many values. It must end at that node."""
    cancelled = Cancelled()
    pressed: list[float] = []

    def on_progress(node: str, done: float, total: float) -> None:
        if node == node_id and done / total not in cancelled.seen:
            cancelled.seen.append(done / total)
        if len(cancelled.seen) == values and not pressed:
            pressed.append(time.monotonic())
            client.interrupt()

    with pytest.raises(InterruptedError, match=f"at node {node_id}$"):
        client.run(graph, on_progress=on_progress)
    cancelled.seconds = time.monotonic() - pressed[0]
    return cancelled


def repeated_tensors(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """bfloat16 weights that are the same few random numbers over and over."""
    few = (torch.randn(2**20 + 1, generator=torch.Generator().manual_seed(0)) * 0.02).to(torch.bfloat16)
    return {name: _repeated(few, torch.Size(shape)) for name, shape in shapes.items()}


def _repeated(few: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    return few.repeat(-(-shape.numel() // len(few)))[: shape.numel()].reshape(shape)
