"""Files and folders that appear under their names only when they are complete.

They are written under a temporary name beside the final one, forced to the disk, and then renamed. A crash can leave
the temporary one behind; its name is ``quantflux-*.partial``, so nothing takes it for a model.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO

from .errors import SaveError, explained

PARTIAL = ".partial"
# what systems say that cannot force a folder's names to the disk, or may not read the folder for it
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM)


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """An opened file that becomes ``path`` at the end, in the place of what was there.

    On any exception, also a cancelled run, the old file stays and the new one is removed.

    Raises:
        SaveError: it cannot be written, or the disk is full.
    """
    path = os.path.abspath(path)
    temporary = _temporary(path)
    try:
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            _exists(path)
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(os.path.dirname(path))
        except OSError as error:
            raise explained(path, error) from error
    except BaseException:
        # not there any more, or what keeps it from being removed must not hide why the file was given up
        with suppress(OSError):
            os.unlink(temporary)
        raise


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[str]:
    """The path of a new folder that becomes ``path`` at the end.

    Files in it that end in ``.partial`` lose that ending then; write so what a folder scan could take for a model.

    Raises:
        SaveError: ``path`` exists already, or cannot be written.
    """
    path = os.path.abspath(path)
    temporary = _temporary(path)
    try:
        try:
            if _exists(path):
                raise SaveError(path, "exists already.", "Choose another name, or remove it first.")
            os.makedirs(temporary)
            yield temporary
            for name in os.listdir(temporary):
                if name.endswith(PARTIAL):
                    os.rename(os.path.join(temporary, name), os.path.join(temporary, name.removesuffix(PARTIAL)))
            _sync_folder(temporary)
            os.rename(temporary, path)
            _sync_folder(os.path.dirname(path))
        except OSError as error:
            raise explained(path, error) from error
    except BaseException:
        # a file that cannot be removed must not hide why the folder was given up
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def require_space(path: str | os.PathLike, nbytes: int) -> None:
    """Check that the disk of ``path`` has room for ``nbytes`` bytes.

    Raises:
        SaveError: it has not; the message has both numbers.
    """
    path = os.path.abspath(path)
    folder = os.path.dirname(path)
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise explained(path, error) from error
    if free < nbytes:
        raise SaveError(
            path,
            f"needs {nbytes / 2**30:.2f} GiB ({nbytes} bytes), but its disk has {free / 2**30:.2f} GiB ({free} bytes) "
            "left.",
            "Free some space, or save to another disk.",
        )


def _temporary(path: str) -> str:
    # as short for a long name, which may be all that the file system takes
    return os.path.join(os.path.dirname(path), f"quantflux-{secrets.token_hex(4)}{PARTIAL}")


def _exists(path: str) -> bool:
    """Whether something has that name; an OSError if nothing ever can, which renaming would tell only at the end."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _sync_folder(path: str):
    """Force the names in a folder to the disk, where the system can do that; some network and shared folders cannot."""
    if os.name != "posix":
        return
    try:
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
