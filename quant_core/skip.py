"""Which modules a ``skip_modules`` list leaves at 16 bit."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


def is_skipped(names: Iterable[str], skip_modules: Iterable[str]) -> bool:
    """Whether a module, known under one or more full ``names``, is on the list.

    A list entry matches as diffusers and transformers match it: it equals the whole name or its last part, or,
    followed by a dot, it occurs inside the name (so ``transformer_blocks.0`` also keeps
    ``single_transformer_blocks.0``). An entry with ``*``, ``?`` or ``[`` is a glob for the whole name.

    Source: ``_replace_with_bnb_linear`` in diffusers/quantizers/bitsandbytes/utils.py.

    >>> is_skipped(["single_blocks.3.linear2"], ["linear2"])
    True
    """
    skip_modules = tuple(skip_modules)
    return any(_matches(name, entry) for name in names for entry in skip_modules)


def unmatched(names: Iterable[str], skip_modules: Iterable[str]) -> list[str]:
    """The entries of ``skip_modules`` that match none of ``names``: most likely misspelled."""
    names = tuple(names)
    return [entry for entry in skip_modules if not any(_matches(name, entry) for name in names)]


def _matches(name: str, entry: str) -> bool:
    if any(character in entry for character in "*?["):
        return fnmatchcase(name, entry)
    return entry in (name, name.rsplit(".", 1)[-1]) or f"{entry}." in name
