"""The run of one row: what it made, or why it failed."""

from __future__ import annotations

from dataclasses import dataclass

from .client import ComfyClient
from .graph import node_name
from .progress import NodeProgress
from .results import Finished, Graph, PromptFailed, PromptRejected


@dataclass(frozen=True)
class Outcome:
    """Either what a graph made or, for people, why it did not."""

    finished: Finished | None = None
    error: str = ""


def run_graph(
    client: ComfyClient, graph: Graph, timeout: float | None, progress: NodeProgress | None = None
) -> Outcome:
    """Run a graph to its end, whichever end that is. Raises ServerGone if the server goes on the way."""
    hooks = {"on_node": progress.on_node, "on_progress": progress.on_progress} if progress else {}
    try:
        return Outcome(client.run(graph, timeout=timeout, **hooks))
    except PromptRejected as rejected:
        lines = [f"{node_name(graph, node)}: {text}" if node is not None else text for node, text in rejected.problems]
        return Outcome(error="\n".join(lines))
    except PromptFailed as failed:
        return Outcome(error=f"{node_name(graph, failed.node_id)}: {failed}")
    except (InterruptedError, TimeoutError) as ended:
        return Outcome(error=str(ended))
