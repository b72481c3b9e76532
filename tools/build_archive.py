"""Builds the archive that the Comfy Registry would publish, as dist/quantflux-<version>.zip."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from comfy_host import REPOSITORY

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

ARCHIVE = "node.zip"  # as comfy-cli calls it, in the folder that it packs


class PackError(Exception):
    """comfy-cli packed nothing; the message is its own."""


def pack(root: Path, folder: Path) -> Path:
    """Have comfy-cli pack the git-tracked files of `root` less those in .comfyignore, and return the archive in
    `folder`; raise PackError if it does not."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", "pack"]
    environment = {**os.environ, "DO_NOT_TRACK": "1"}
    ran = subprocess.run(command, cwd=root, env=environment, text=True, capture_output=True)
    said = ran.stdout + ran.stderr
    # where git does not answer it warns, and packs whatever lies in the folder
    if ran.returncode or "Not in a git repository" in said:
        raise PackError(f"`comfy node pack` failed in {root}:\n{said}")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{project['name']}-{project['version']}.zip"
    shutil.move(root / ARCHIVE, target)
    return target


def main() -> None:
    """Pack the checkout as it is, uncommitted changes of tracked files included."""
    try:
        archive = pack(REPOSITORY, REPOSITORY / "dist")
    except PackError as error:
        sys.exit(str(error))
    print(f"{archive.relative_to(REPOSITORY)}: {archive.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
