"""What goes wrong, said so that the reader can mend it: what it concerns, the cause, and the way out."""

from __future__ import annotations

import os


class ConfigError(ValueError):
    """A quantization setting that cannot be used."""


class CheckpointError(ValueError):
    """A file that cannot be used.

    Args:
        path: the file concerned; its name opens the message.
        cause: what is wrong with it.
        remedy: what the user can do.
    """

    def __init__(self, path: str | os.PathLike, cause: str, remedy: str):
        self.path = os.fspath(path)
        self.cause = cause
        self.remedy = remedy
        super().__init__(f"{os.path.basename(os.path.normpath(self.path))}: {cause} {remedy}")
