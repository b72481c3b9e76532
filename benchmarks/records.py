"""What the programs share: records, one JSON line each, what each says of the machine, and the table beside them."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = ("torch", "bitsandbytes", "comfy-kitchen", "triton", "diffusers", "gguf")


class RunFailed(Exception):
    """A fresh process ended with an error; its last line is the message."""


def environment() -> dict:
    """Machine, versions, commit and date of every record."""
    import torch

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    with open(os.path.join(os.environ["COMFYUI_PATH"], "comfyui_version.py")) as file:
        host = file.read().split('"')[-2]
    return {
        "machine": machine,
        "versions": {"comfyui": host, "python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "commit": os.environ.get("QUANTFLUX_COMMIT") or commit.stdout.strip() or None,
        "date": datetime.date.today().isoformat(),
    }


class Records(list[dict]):
    """The records so far. Each is printed, and in the file as soon as it is added: a run may be cut short."""

    def __init__(self, path: str | None, **more):
        """``path``: of JSON lines, anew, or None to print only. ``more``: what is in every line, as the environment."""
        super().__init__()
        self._path, self._about = path, environment() | more
        if path:
            open(path, "w").close()

    def add(self, record: dict):
        self.append(record)
        print(json.dumps(record), flush=True)
        if self._path:
            with open(self._path, "a") as out:
                print(json.dumps(record | self._about), file=out)

    def finish(self, table: Callable[[list[dict]], str]):
        """Print the Markdown table, and write it beside the lines."""
        if self._path:
            with open(os.path.splitext(self._path)[0] + ".md", "w") as out:
                out.write(table(self) + "\n")
        print(table(self))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; what a short row lacks is left empty."""
    lines = [header, ["---"] * len(header), *([*row, *[""] * (len(header) - len(row))] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_fresh_process(program: str, *arguments: str) -> Iterator[dict]:
    """The JSON lines that another program of this folder prints, as they come.

    Raises:
        RunFailed: it ended with an error.
    """
    command = [sys.executable, os.path.join(HERE, program), *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
        if process.returncode:
            errors.seek(0)
            text = errors.read().strip()
            print(text[-4000:], file=sys.stderr)
            raise RunFailed((text.splitlines() or [f"exit status {process.returncode}"])[-1])


def only(lines: Iterator[dict]) -> dict:
    """The last of the lines, where the program prints one."""
    return list(lines)[-1]
