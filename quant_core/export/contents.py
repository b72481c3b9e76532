"""What a model folder of diffusers or transformers will hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..skip import is_skipped
from .tensors import Group


@dataclass(frozen=True)
class FolderContents:
    """
    Attributes:
        config: ``config.json``, without the quantization config.
        stem: what the files of weights are called, before the number of the shard.
        groups: the tensors.
        plain_modules: entries for ``llm_int8_skip_modules``: they match all layers at 16 bit, and no packed one.
        is_transformers: whether transformers reads it, not diffusers.
    """

    config: dict[str, Any]
    stem: str
    groups: Sequence[Group]
    plain_modules: list[str]
    is_transformers: bool = False


def also_skipped(plain: Iterable[str], modules: Iterable[str]) -> list[str]:
    """The ``modules`` that a skip list of the full names ``plain`` keeps at 16 bit besides those it names.

    diffusers takes an entry for a last part of a name too, so ``proj_out``, FLUX's last layer, is every
    ``single_transformer_blocks.*.proj_out`` as well, and no other entry matches that layer.
    """
    plain = set(plain)
    return [module for module in modules if module not in plain and is_skipped([module], plain)]
