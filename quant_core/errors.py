"""What goes wrong, said so that the reader can mend it: what it concerns, the cause, and the way out."""

from __future__ import annotations

import os
import re
import unicodedata

_LONGEST_WORD = 300  # characters; a name of a tensor takes less than 100
_LONGEST_TEXT = 4000  # characters


class ConfigError(ValueError):
    """A quantization setting that cannot be used."""


class CheckpointError(ValueError):
    """A file that cannot be used. The names in it may be anything, so the message has them :func:`legible`.

    Args:
        path: the file concerned; its name opens the message.
        cause: what is wrong with it.
        remedy: what the user can do.
    """

    def __init__(self, path: str | os.PathLike, cause: str, remedy: str):
        self.path = os.fspath(path)
        self.cause = legible(cause)
        self.remedy = remedy
        super().__init__(f"{legible(os.path.basename(os.path.normpath(self.path)))}: {self.cause} {remedy}")


def legible(text: str) -> str:
    """``text`` for a log or a dialog: control characters are escaped, and what is absurdly long loses its middle."""
    # a space of another alphabet is not printable, but no harm
    text = "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else c.encode("unicode_escape").decode() for c in text
    )
    text = re.sub(r"\S+", lambda word: _without_middle(word[0], _LONGEST_WORD), text)
    return _without_middle(text, _LONGEST_TEXT)


def _without_middle(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length // 2]}…{text[-(length // 2) :]}"
