"""The packages that the command line needs beside the pack's own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .errors import UsageError

PACK = Path(__file__).absolute().parent.parent
# extra of pyproject.toml → the modules that it brings
MODULES = {"run": ("requests", "websocket", "comfy_cli"), "ray": ("ray",)}


def require_extra(extra: str) -> None:
    """Raise UsageError, with the command that installs it, unless the packages of an extra are there."""
    missing = [name for name in MODULES[extra] if find_spec(name) is None]
    if missing:
        source = f'-e "{PACK}[{extra}]"' if (PACK / "pyproject.toml").is_file() else f'"quantflux[{extra}]"'
        raise UsageError(f"{', '.join(missing)} not installed. To go on: python -m pip install {source}")
