"""Workflow files, as graphs in API format."""

from __future__ import annotations

import json
import os
from pathlib import Path

from .errors import UsageError
from .results import Graph


def read_workflow(path: str | os.PathLike) -> dict:
    """Return the workflow in a JSON file, in either format; raise UsageError if there is none."""
    try:
        # Some editors begin a UTF-8 file with a byte order mark.
        workflow = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}. To go on, save the workflow from the canvas again.") from None
    if not (is_graph(workflow) or isinstance(workflow, dict) and isinstance(workflow.get("nodes"), list)):
        raise UsageError(f"{path} is not a workflow, neither as the canvas saves nor as it exports for the API.")
    return workflow


def is_graph(workflow: object) -> bool:
    """Return whether this is API format: node ids with a `class_type` and `inputs` each."""
    return (
        isinstance(workflow, dict)
        and bool(workflow)
        and all(
            isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)
            for node in workflow.values()
        )
    )


def to_graph(workflow: dict, object_info: dict) -> Graph:
    """Return a workflow as a graph; what the canvas saved is converted by comfy-cli.

    `object_info` is the server's, whose nodes' inputs say which saved value is whose. Raises UsageError for a workflow
    with nodes that the server does not have, or that cannot be converted.
    """
    if is_graph(workflow):
        graph = workflow
    else:
        from comfy_cli.workflow_to_api import WorkflowConversionError, convert_ui_to_api

        try:
            graph = convert_ui_to_api(workflow, object_info)
        except WorkflowConversionError as error:
            raise UsageError(f"the workflow cannot be converted to API format: {error}") from None
    unknown = sorted({node["class_type"] for node in graph.values()} - set(object_info))
    if unknown:
        raise UsageError(
            f"the server has no node {', '.join(unknown)}. To go on, install what brings it. If that is installed, "
            "the server's log says why it did not load; --log FILE keeps the log of a server that is started here."
        )
    return graph


def node_title(graph: Graph, node_id: str) -> str:
    """Return what the canvas shows over a node: its title, else its class."""
    node = graph.get(node_id, {})
    return (node.get("_meta") or {}).get("title") or node.get("class_type", node_id)


def node_name(graph: Graph, node_id: str) -> str:
    """Return a node as errors name it: title, class and id."""
    title, class_type = node_title(graph, node_id), graph.get(node_id, {}).get("class_type")
    return f"{title} (node {node_id})" if class_type in (None, title) else f"{title} ({class_type}, node {node_id})"
