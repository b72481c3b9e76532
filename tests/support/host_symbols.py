"""What the pack's source takes from the host, read from the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOTS = ("comfy", "comfy_api", "comfy_execution", "folder_paths", "node_helpers", "latent_preview")


def used_symbols(folder: Path) -> dict[str, set[str]]:
    """Module of the host -> names that the Python files below ``folder`` take from it, a class's own ones included."""
    found: dict[str, set[str]] = {}
    for path in sorted(folder.rglob("*.py")):
        for module, name in _symbols(ast.parse(path.read_text())):
            found.setdefault(module, set()).add(name)
    return found


def _symbols(tree: ast.Module) -> Iterator[tuple[str, str]]:
    modules: dict[str, str] = {}  # local name -> module
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in ROOTS:
                    imported.add(alias.name)
                    if alias.asname:
                        modules[alias.asname] = alias.name
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module.split(".")[0] in ROOTS:
            yield from ((node.module, alias.name) for alias in node.names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (chain := _chain(node)):
            local, _, rest = chain.partition(".")
            if local in modules:
                yield modules[local], rest.split(".")[0]
                continue
            # the longest module that was imported by its whole name
            known = [name for name in imported if chain.startswith(f"{name}.")]
            if known:
                module = max(known, key=len)
                yield module, chain[len(module) + 1 :].split(".")[0]


def _chain(node: ast.Attribute) -> str | None:
    """``a.b.c`` as it is written; None where it does not begin with a name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None
