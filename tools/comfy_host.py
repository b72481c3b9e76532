"""Runs a real ComfyUI headless, on a port and in a base directory of its own, with this pack as its only one."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests
from comfy_client import ComfyClient

REPOSITORY = Path(__file__).resolve().parent.parent
DEFAULT_HOST = REPOSITORY / ".host" / "ComfyUI"
PACK_NAME = "quantflux"

FLAGS = (
    ("--disable-all-custom-nodes",),
    ("--whitelist-custom-nodes", PACK_NAME),
    ("--disable-api-nodes",),
    ("--disable-auto-launch",),
    ("--database-url", "sqlite:///:memory:"),
)


class HostError(Exception):
    """There is no usable ComfyUI, or it did not start; the message says which, and what to do."""


def host_root(check: bool = True) -> Path:
    """Return the folder of the ComfyUI to use: COMFYUI_PATH if that is set, else .host/ComfyUI.

    With `check`, raises HostError if no ComfyUI is there.
    """
    given = os.environ.get("COMFYUI_PATH")
    root = Path(given).expanduser().resolve() if given else DEFAULT_HOST
    if check and not (root / "main.py").is_file():
        advice = "set COMFYUI_PATH to a ComfyUI checkout, or unset it" if given else "run `make setup`"
        raise HostError(f"there is no ComfyUI in {root}: its main.py is missing. To go on, {advice}.")
    return root


def has_accelerator() -> bool:
    """Return whether torch sees a GPU that the host can run on."""
    import torch

    return torch.cuda.is_available() or torch.xpu.is_available()


def free_port() -> int:
    """Return a TCP port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stop_on_terminate() -> None:
    """Make SIGTERM end this program as Ctrl-C does, so that a host which it runs is stopped and not left behind."""

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


class ComfyHost:
    """A context manager: inside it the host answers at `client`, after it the process is gone.

    `base` is the host's base directory; a temporary one unless given. `models` maps a model folder's name to the
    files that are linked into it. `log_to_terminal` shows the host's log instead of keeping it for `log`.
    Without `with_pack` it is the host alone, for comparing.
    """

    def __init__(
        self,
        base: Path | None = None,
        models: dict[str, list[Path]] | None = None,
        port: int | None = None,
        extra_flags: tuple[str, ...] = (),
        log_to_terminal: bool = False,
        with_pack: bool = True,
    ):
        self.root = host_root()
        self.client = ComfyClient(f"127.0.0.1:{port or free_port()}")
        self._temporary = None if base else tempfile.TemporaryDirectory(prefix="quantflux-host-")
        self.base = Path(base or self._temporary.name).resolve()
        self._models = models or {}
        self._extra_flags = extra_flags
        self._with_pack = with_pack
        self._log_path = None if log_to_terminal else self.base / "host.log"
        self._log_after_stop = ""
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "ComfyHost":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What the host has logged so far."""
        if self._log_path and self._log_path.exists():
            return self._log_path.read_text(errors="replace")
        return self._log_after_stop

    def add_model(self, folder: str, file: Path, name: str | None = None) -> None:
        """Link a file into one of the model folders, such as "diffusion_models"."""
        self._link(file, self.base / "models" / folder / (name or file.name))

    def start(self, timeout: float = 300) -> None:
        """Start the host and return once it answers; raise HostError with the end of its log if it does not."""
        for folder, files in self._models.items():
            for file in files:
                self.add_model(folder, file)
        (self.base / "custom_nodes").mkdir(parents=True, exist_ok=True)
        if self._with_pack:
            self._link(REPOSITORY, self.base / "custom_nodes" / PACK_NAME)
        output = self._log_path.open("wb") if self._log_path else None
        try:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                # On the CPU, OpenMP threads that spin while they wait slow a busy machine's every process down.
                env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
            )
        finally:
            if output:
                output.close()
        try:
            self._wait_until_it_answers(timeout)
        except BaseException:
            self.stop()
            raise

    def wait(self) -> int:
        """Wait until the host ends by itself and return its exit status."""
        return self._process.wait()

    def stop(self) -> None:
        """End the process, by force if it does not go within 10 seconds, and remove a temporary base directory."""
        if self._process and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._temporary:
            self._log_after_stop = self.log
            self._temporary.cleanup()

    def _command(self) -> list[str]:
        known = (self.root / "comfy" / "cli_args.py").read_text()
        host, port = self.client.address.split(":")
        command = [sys.executable, "-u", str(self.root / "main.py"), "--listen", host, "--port", port]
        command += ["--base-directory", str(self.base)]
        for flag in FLAGS:
            if f'"{flag[0]}"' in known:
                command += flag
        if not has_accelerator():
            command.append("--cpu")
        return [*command, *self._extra_flags]

    def _wait_until_it_answers(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise HostError(f"ComfyUI in {self.root} ended with status {self._process.returncode} "
                                f"while starting. {self._end_of_log()}")
            try:
                self.client.get("/system_stats")
                return
            except requests.RequestException:
                time.sleep(0.2)  # not listening yet
        raise HostError(f"ComfyUI in {self.root} did not answer within {timeout:.0f} s. {self._end_of_log()}")

    def _end_of_log(self) -> str:
        if not self._log_path:
            return "Its log is above."
        return "The end of its log:\n" + "\n".join(self.log.splitlines()[-30:])

    @staticmethod
    def _link(source: Path, link: Path) -> None:
        if not source.exists():
            raise HostError(f"{source} does not exist, so it cannot be linked to {link}.")
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        link.symlink_to(source.resolve(), target_is_directory=source.is_dir())
