"""What is saved is there whole, or not at all."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from collections import namedtuple
from pathlib import Path

import pytest
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.export import SaveError, save_diffusers_folder, save_single_file
from quantflux.quant_core.export.atomic import PARTIAL, atomic_file, require_space

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals and limits")
SAVERS = {"file": save_single_file, "folder": save_diffusers_folder}

# saves to argv[1] ("file" or "folder") at argv[2]; what comes before it is put in by the tests
PROGRAM = """
import sys, torch
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.export import provenance_of, save_diffusers_folder, save_single_file
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source
kind, path, source_path = sys.argv[1:]
source = flux_source(open_checkpoint(source_path), QuantConfig("nf4"))
tensors, provenance = load(source), provenance_of(source)
save = {"file": save_single_file, "folder": save_diffusers_folder}[kind]
"""


def run(rest: str, kind: str, path: Path, flux_file: Path) -> subprocess.CompletedProcess:
    program = PROGRAM + textwrap.dedent(rest)
    return subprocess.run([sys.executable, "-c", program, kind, path, flux_file], capture_output=True, text=True)


def finished(folder: Path) -> list[Path]:
    """All below ``folder`` that a folder scan could take for a model, or a part of one."""
    return [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(PARTIAL)]


@POSIX
@pytest.mark.parametrize("kind", SAVERS)
def test_kill_in_the_middle_leaves_the_old_file_or_none(kind, flux_file, tmp_path):
    old = tmp_path / "model"
    if kind == "file":
        old.write_bytes(b"the old model")
    killed = run(
        """
        import os, signal
        def die(done, total):
            if done > total // 2:
                os.kill(os.getpid(), signal.SIGKILL)
        save(path, tensors, provenance, progress=die)
        """,
        kind, old, flux_file,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert any(path.name.endswith(PARTIAL) for path in tmp_path.iterdir())  # it had begun
    assert finished(tmp_path) == ([old] if kind == "file" else [])
    if kind == "file":
        assert old.read_bytes() == b"the old model"


@POSIX
@pytest.mark.parametrize("kind", SAVERS)
def test_a_disk_that_fills_up_leaves_the_old_file_or_none(kind, flux_file, tmp_path):
    old = tmp_path / "model"
    if kind == "file":
        old.write_bytes(b"the old model")
    full = run(
        """
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        save(path, tensors, provenance)
        """,
        kind, old, flux_file,
    )  # fmt: skip
    assert full.returncode == 1
    assert re.search(
        rf"SaveError: {re.escape(str(old))}: was not saved: .*File too large.* save to another", full.stderr
    )
    assert list(tmp_path.iterdir()) == ([old] if kind == "file" else [])
    if kind == "file":
        assert old.read_bytes() == b"the old model"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("kind", SAVERS)
def test_a_cancelled_save_leaves_nothing(kind, stop, loaded_flux, tmp_path):
    def cancel(done, total):
        raise stop

    with pytest.raises(stop):
        SAVERS[kind](tmp_path / "model", *loaded_flux(QuantConfig("nf4")), progress=cancel)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", SAVERS)
def test_too_little_space_is_said_with_numbers_before_anything_is_written(kind, loaded_flux, tmp_path, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40 - 1000, 1000))
    with pytest.raises(SaveError, match=r"model: needs 0\.00 GiB \(4\d+ bytes\), but its disk has .*\(1000 bytes\)"):
        SAVERS[kind](tmp_path / "model", *loaded_flux(QuantConfig("nf4")))
    assert list(tmp_path.iterdir()) == []


def test_space_is_looked_for_where_the_folder_will_be_made(tmp_path):
    require_space(tmp_path / "not" / "there" / "yet", 1)


def test_a_folder_in_the_way_of_a_file_is_told(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(SaveError, match="model: was not saved"), atomic_file(tmp_path / "model") as file:
        file.write(b"new")
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


def test_a_new_file_takes_the_place_of_the_old_one(tmp_path):
    (tmp_path / "model").write_bytes(b"old")
    with atomic_file(tmp_path / "model") as file:
        file.write(b"new")
        assert (tmp_path / "model").read_bytes() == b"old"
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]
