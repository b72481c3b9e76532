"""The user's own ComfyUI, started for the command line."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import accelerator
from .errors import HostError, ServerGone
from .extras import PACK
from .host import HostProcess, known_flags, require_comfyui

# What a host of the command line is started with, where it knows the flag. Its database is its own: another ComfyUI
# that runs from the same folder has that one locked.
FLAGS = (("--disable-auto-launch",), ("--database-url", "sqlite:///:memory:"))
# Flags with which the user says what it runs on.
DEVICE_FLAGS = {"--cpu", "--directml"}


def find_comfyui(given: str | None) -> Path:
    """Return the folder of the ComfyUI to start: `given`, else COMFYUI_PATH, else the one the pack is installed in.

    Raises HostError if there is none.
    """
    if named := given or os.environ.get("COMFYUI_PATH"):
        option = "--comfyui" if given else "COMFYUI_PATH"
        return require_comfyui(Path(named).expanduser().resolve(), f"give {option} the folder of a ComfyUI")
    if PACK.parent.name == "custom_nodes" and (PACK.parent.parent / "main.py").is_file():
        return PACK.parent.parent
    raise HostError(
        f"no ComfyUI is known to start: {PACK} is not in one's custom_nodes. To go on, give its folder by --comfyui "
        "or COMFYUI_PATH, or the address of one that runs by --server."
    )


class InstalledHost(HostProcess):
    """The user's ComfyUI with its models and packs, on a port of its own; a context manager.

    `flags` are added to its command line. Its temporary files are kept apart, as two hosts of one folder would delete
    each other's. Its log is written to `log_path`, or kept only while it runs.
    """

    def __init__(self, root: Path, flags: Iterable[str] = (), log_path: Path | None = None):
        # Removed at the end of this program, if an interruption comes before `stop` can be called.
        self._scratch = tempfile.TemporaryDirectory(prefix="quantflux-host-", ignore_cleanup_errors=True)
        flags = list(flags)
        own = known_flags(root, (*FLAGS, ("--temp-directory", self._scratch.name)))
        if not DEVICE_FLAGS.intersection(flags) and not _accelerator_present():
            own.append("--cpu")
        super().__init__(root, [*own, *flags], None, root, log_path or Path(self._scratch.name, "host.log"))

    def __enter__(self) -> InstalledHost:
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Inside it, the host's end is a HostError with the end of its log."""
        try:
            yield
        except ServerGone as gone:
            raise HostError(f"ComfyUI in {self.root} no longer answers. {self.end_of_log()}") from gone

    def stop(self) -> None:
        """End the process and remove its temporary files."""
        super().stop()
        self._scratch.cleanup()


def _accelerator_present() -> bool:
    command = [sys.executable, accelerator.__file__]
    # In a session of its own, where Ctrl-C does not reach it: this program ends it.
    return subprocess.run(command, stdin=subprocess.DEVNULL, start_new_session=True).returncode == 0
