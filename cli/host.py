"""A ComfyUI that runs as a child of this program."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from . import child
from .client import ComfyClient
from .errors import HostError, ServerGone, UsageError


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def require_comfyui(root: Path, advice: str) -> Path:
    """Return `root` if a ComfyUI is there, else raise HostError with `advice`."""
    if not (root / "main.py").is_file():
        raise HostError(f"there is no ComfyUI in {root}: its main.py is missing. To go on, {advice}.")
    return root


def known_flags(root: Path, flags: Iterable[tuple[str, ...]]) -> list[str]:
    """Return those flags, with their values, that the ComfyUI in `root` knows."""
    known = (root / "comfy" / "cli_args.py").read_text(encoding="utf-8")
    return [word for flag in flags if f'"{flag[0]}"' in known for word in flag]


class HostProcess:
    """A ComfyUI started by this program, reached at `client`; it ends when this program does, however that ends.

    `root` is its folder, `cwd` where it is started, `log_path` the file of its log, which otherwise is the terminal's.
    """

    def __init__(self, root: Path, flags: Iterable[str], port: int | None, cwd: Path, log_path: Path | None):
        self.root = root
        self.port = port or free_port()
        self.client = ComfyClient(f"127.0.0.1:{self.port}")
        self._flags = list(flags)
        self._cwd = cwd
        self._log_path = log_path
        self._process: subprocess.Popen | None = None

    @property
    def log(self) -> str:
        """What the host has logged so far."""
        return self._log_path.read_text(errors="replace") if self._log_path and self._log_path.exists() else ""

    @property
    def pid(self) -> int:
        """Of the host's process, once it is started."""
        return self._process.pid

    def start(self, timeout: float = 300) -> None:
        """Start the host and return once it answers.

        Raises HostError with the end of its log if it does not within `timeout` seconds, and UsageError if the log
        cannot be written.
        """
        address = ["--listen", "127.0.0.1", "--port", str(self.port)]
        command = [sys.executable, "-u", child.__file__, str(self.root / "main.py"), *address, *self._flags]
        try:
            with self._open_log() as output:
                self._process = subprocess.Popen(
                    command,
                    cwd=self._cwd,
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    # Ctrl-C is for this program, which then interrupts the workflow or stops the host.
                    start_new_session=True,
                    # On the CPU, OpenMP threads that spin while they wait slow a busy machine's every process down.
                    env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
                )
            self._wait_until_it_answers(timeout)
        except BaseException:
            self.stop()
            raise

    def wait(self) -> int:
        """Wait until the host ends by itself and return its exit status."""
        return self._process.wait()

    def stop(self) -> None:
        """End the process, by force if it does not go within 10 seconds."""
        if not self._process:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process.stdin.close()

    def end_of_log(self) -> str:
        """The last 30 lines of the log, to be shown with an error."""
        if not self._log_path:
            return "Its log is above."
        return "The end of its log:\n" + "\n".join(self.log.splitlines()[-30:])

    def _open_log(self) -> contextlib.AbstractContextManager[BinaryIO | None]:
        if not self._log_path:
            return contextlib.nullcontext()
        try:
            return self._log_path.open("wb")
        except OSError as error:
            raise UsageError(f"the log {self._log_path} cannot be written: {error.strerror}.") from None

    def _wait_until_it_answers(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise HostError(
                    f"ComfyUI in {self.root} ended with status {self._process.returncode} while starting. "
                    f"{self.end_of_log()}"
                )
            try:
                self.client.get("/system_stats")
                return
            except ServerGone:
                time.sleep(0.2)  # not listening yet
        raise HostError(f"ComfyUI in {self.root} did not answer within {timeout:.0f} s. {self.end_of_log()}")
