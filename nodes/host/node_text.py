"""Text on a node of the canvas, which shows by itself only what the host's own output nodes return."""

from __future__ import annotations

import sys

from comfy_execution.utils import get_executing_context


def show_on_node(text: str, node_id: str | None = None) -> None:
    """Show ``text`` on a node, by default the one that runs. Without a server, or out of a run, nothing happens."""
    # where nodes run without the server, its module is not to be imported
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if node_id is None:
        context = get_executing_context()
        node_id = context and context.node_id
    if node_id is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, node_id)
