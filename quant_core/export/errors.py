"""What goes wrong while a model is saved."""

from __future__ import annotations

import errno
import os

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", None))
_TOO_LARGE = (errno.EFBIG,)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class SaveError(RuntimeError):
    """A model that could not be saved. Nothing of it is left under its name.

    Args:
        path: the file or folder that was to be written; it opens the message.
        cause: what is wrong.
        remedy: what the user can do.
    """

    def __init__(self, path: str | os.PathLike, cause: str, remedy: str):
        self.path = os.fspath(path)
        self.cause = cause
        self.remedy = remedy
        super().__init__(f"{self.path}: {cause} {remedy}")


def explained(path: str, error: OSError) -> SaveError:
    """What the operating system said while ``path`` was written, as a SaveError."""
    reason = error.strerror or type(error).__name__
    if error.errno in _FULL:
        cause, remedy = "the disk is full", "Free some space, or save to another disk."
    elif error.errno in _TOO_LARGE:
        cause, remedy = "the file is larger than is allowed there", "Raise the limit, or save to another disk."
    elif error.errno in _FORBIDDEN:
        cause, remedy = "writing is not allowed there", "Check the folder's access rights, or save to another one."
    elif error.errno == errno.ENAMETOOLONG:
        cause, remedy = "its name is too long", "Choose a shorter name."
    else:
        cause, remedy = "it cannot be written", "Check the disk, or save to another one."
    return SaveError(path, f"was not saved: {cause} ({reason}).", remedy)
