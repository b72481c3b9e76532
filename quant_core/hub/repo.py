"""Naming a repository, and what may lie inside it, on the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..errors import ConfigError, legible

# no part of a revision may start with a dot: the cache keeps it as a path
_REVISION = re.compile(r"[A-Za-z0-9_][\w.+-]*(/[A-Za-z0-9_][\w.+-]*)*", re.ASCII)


class HubError(ValueError):
    """A repository that no model can be had from.

    Args:
        hub_repo: the repository as the user named it; it opens the message.
        cause: what is wrong.
        remedy: what the user can do.
    """

    def __init__(self, hub_repo: str, cause: str, remedy: str):
        self.hub_repo = hub_repo
        self.cause = legible(cause)
        self.remedy = remedy
        super().__init__(f"{hub_repo}: {self.cause} {remedy}")


@dataclass(frozen=True)
class Repo:
    """A repository as the user named it, and where it is looked for.

    Attributes:
        text: what the user wrote.
        name: "owner/name".
        path: a .safetensors file or a folder inside it; empty for its root.
        revision: a branch, a tag or a commit; None for the default branch.
        endpoint: another Hub than huggingface_hub's.
        cache_dir: another cache folder than huggingface_hub's.
    """

    text: str
    name: str
    path: str
    revision: str | None
    endpoint: str | None
    cache_dir: str | None

    def naming(self, path: str) -> str:
        """What to write for ``path`` in this repository."""
        return f"{self.name}/{path}" + (f"@{self.revision}" if self.revision else "")


def parse_repo(text: str, endpoint: str | None = None, cache_dir: str | None = None) -> Repo:
    """The repository that "owner/name", "owner/name/path/inside" or one of them with "@revision" names.

    Raises:
        ConfigError: ``text`` has another form, or its path leaves the repository.
    """
    location, at, revision = text.partition("@")
    owner, name, *inside = location.split("/") if location.count("/") else ("", "")
    try:
        validate_repo_id(f"{owner}/{name}")
        # some versions let a name end in a line break
        valid = (
            name == name.strip()
            and all(map(_is_plain_segment, inside))
            and (not at or _REVISION.fullmatch(revision) and ".." not in revision)
        )
    except HFValidationError:
        valid = False
    if not valid:
        raise ConfigError(
            f"hub_repo {text!r} is no repository's name: write owner/name or owner/name@revision, "
            "as in black-forest-labs/FLUX.1-schnell. A .safetensors file or a folder of the repository may follow the "
            "name: owner/name/path/inside@revision."
        )
    return Repo(text, f"{owner}/{name}", "/".join(inside), revision or None, endpoint, cache_dir)


def _is_plain_segment(segment: str) -> bool:
    return (
        segment.strip(" .") != ""
        and segment == segment.strip()
        and segment.isprintable()
        and not set(segment) & set("\\:")
    )
