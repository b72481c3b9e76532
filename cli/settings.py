"""`--set NODE.INPUT=VALUE` and the columns of `--prompts`: values for inputs of a graph."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable

from .errors import UsageError
from .graph import node_name, node_title
from .results import Graph

Setting = tuple[str, str]
# In the names of the types, such as COMFY_DYNAMICCOMBO_V3, of inputs that have others under them.
DYNAMIC = ("AUTOGROW", "DYNAMIC")


def parse_setting(argument: str) -> Setting:
    """Split "NODE.INPUT=VALUE" into its key and its value; raise UsageError if it is no such thing."""
    key, equals, value = argument.partition("=")
    if not equals or "." not in key.strip("."):
        raise UsageError(f"--set {argument}: expected NODE.INPUT=VALUE, such as 6.text=… or KSampler.seed=3.")
    return key, value


def with_settings(graph: Graph, settings: Iterable[Setting], object_info: dict) -> Graph:
    """Return a copy of `graph` with these values in it. A value that replaces a link cuts it.

    Raises UsageError, with what there is, for a key that names no input.
    """
    graph = copy.deepcopy(graph)
    for key, text in settings:
        node_id, name, spec = find_input(graph, key, object_info)
        graph[node_id]["inputs"][name] = read_value(text, spec)
    return graph


def find_input(graph: Graph, key: str, object_info: dict) -> tuple[str, str, list | None]:
    """Return node id, input name and the server's description of the input that `key` names.

    A node is named by its id, else by its title, else by its class, which must be those of one node only. Names may
    contain dots. Raises UsageError.
    """
    dots = [i for i, letter in enumerate(key) if letter == "."]
    for dot in dots:
        if nodes := _named(graph, key[:dot]):
            break
    else:
        listed = "\n".join(f"  {node_name(graph, node_id)}" for node_id in graph)
        raise UsageError(f"{key}: no node has this id, title or class. There are:\n{listed}")
    if len(nodes) > 1:
        listed = "\n".join(f"  {node_name(graph, node_id)}" for node_id in nodes)
        raise UsageError(f"{key}: several nodes are called {key[:dot]}. Name one by its id:\n{listed}")
    (node_id,), name = nodes, key[dot + 1 :]
    declared = object_info.get(graph[node_id]["class_type"], {}).get("input", {})
    specs = {**declared.get("required", {}), **declared.get("optional", {})}
    if name not in specs and name not in graph[node_id]["inputs"] and not _is_part(name, specs):
        listed = ", ".join([*specs, *(known for known in graph[node_id]["inputs"] if known not in specs)])
        raise UsageError(f"{key}: {node_name(graph, node_id)} has no input {name}. It has: {listed or 'none'}.")
    return node_id, name, specs.get(name)


def read_value(text: str, spec: list | None) -> object:
    """Return the value that `text` is for an input: as it is for a text and for a choice, else JSON, else as it is."""
    kind = spec[0] if spec else None
    choices = kind if isinstance(kind, list) else (spec[1].get("options", []) if kind == "COMBO" and spec[1:] else [])
    if kind == "STRING" or text in choices:
        return text
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text


def _is_part(name: str, specs: dict) -> bool:
    """Whether this is "input.part": only the input is declared, and which parts it has depends on its value."""
    whole, _, part = name.partition(".")
    kind = specs.get(whole, [None])[0]
    return bool(part) and isinstance(kind, str) and any(word in kind for word in DYNAMIC)


def _named(graph: Graph, name: str) -> list[str]:
    if name in graph:
        return [name]
    titled = [node_id for node_id in graph if node_title(graph, node_id) == name]
    return titled or [node_id for node_id, node in graph.items() if node["class_type"] == name]


def _refuse(constant: str) -> None:
    """NaN and Infinity are text here: no JSON has them, and the server would refuse it."""
    raise ValueError(constant)
