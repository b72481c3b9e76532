"""Runs a real ComfyUI headless, on a port and in a base directory of its own, with this pack as its only one."""

import os
import tempfile
from pathlib import Path

from quantflux.cli.accelerator import has_accelerator
from quantflux.cli.errors import HostError
from quantflux.cli.host import HostProcess, known_flags, require_comfyui
from quantflux.cli.interrupts import stop_on_signals

__all__ = ["ComfyHost", "HostError", "has_accelerator", "host_root", "stop_on_signals"]

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


def host_root(check: bool = True) -> Path:
    """Return the folder of the ComfyUI to use: COMFYUI_PATH if that is set, else .host/ComfyUI.

    With `check`, raises HostError if no ComfyUI is there.
    """
    given = os.environ.get("COMFYUI_PATH")
    root = Path(given).expanduser().resolve() if given else DEFAULT_HOST
    advice = "set COMFYUI_PATH to a ComfyUI checkout, or unset it" if given else "run `make setup`"
    return require_comfyui(root, advice) if check else root


class ComfyHost(HostProcess):
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
        root = host_root()
        self._temporary = None if base else tempfile.TemporaryDirectory(prefix="quantflux-host-")
        self.base = Path(base or self._temporary.name).resolve()
        self._models = models or {}
        self._with_pack = with_pack
        self._log_after_stop = ""
        flags = ["--base-directory", str(self.base), *known_flags(root, FLAGS)]
        if not has_accelerator():
            flags.append("--cpu")
        log_path = None if log_to_terminal else self.base / "host.log"
        super().__init__(root, [*flags, *extra_flags], port, self.base, log_path)

    def __enter__(self) -> "ComfyHost":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What the host has logged so far."""
        return super().log or self._log_after_stop

    def add_model(self, folder: str, file: Path, name: str | None = None) -> None:
        """Link a file into one of the model folders, such as "diffusion_models"."""
        self._link(file, self.base / "models" / folder / (name or file.name))

    def start(self, timeout: float = 300) -> None:
        """Link models and pack, start the host and return once it answers; raise HostError if it does not."""
        for folder, files in self._models.items():
            for file in files:
                self.add_model(folder, file)
        (self.base / "custom_nodes").mkdir(parents=True, exist_ok=True)
        if self._with_pack:
            self._link(REPOSITORY, self.base / "custom_nodes" / PACK_NAME)
        super().start(timeout)

    def stop(self) -> None:
        """End the process, by force if it does not go within 10 seconds, and remove a temporary base directory."""
        super().stop()
        if self._temporary:
            self._log_after_stop = self.log
            self._temporary.cleanup()

    @staticmethod
    def _link(source: Path, link: Path) -> None:
        if not source.exists():
            raise HostError(f"{source} does not exist, so it cannot be linked to {link}.")
        link.parent.mkdir(parents=True, exist_ok=True)
        if link.is_symlink():
            link.unlink()
        link.symlink_to(source.resolve(), target_is_directory=source.is_dir())
