"""What is saved is there whole, or not at all."""

import errno
import os
import re
import shutil
import signal
import stat
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


def test_space_is_looked_for_where_the_folder_will_be_made(tmp_path, monkeypatch):
    asked, usage = [], shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(Path(path)) or usage(path))
    require_space(tmp_path / "not" / "there" / "yet", 1)
    assert asked == [tmp_path]


def test_a_folder_in_the_way_of_a_file_is_told(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(SaveError, match="model: was not saved"), atomic_file(tmp_path / "model") as file:
        file.write(b"new")
    assert list(tmp_path.iterdir()) == [tmp_path / "model"]


@POSIX
@pytest.mark.parametrize("kind", SAVERS)
def test_a_name_may_be_as_long_as_the_file_system_takes(kind, loaded_flux, tmp_path):
    longest = "x" * os.pathconf(tmp_path, "PC_NAME_MAX")
    SAVERS[kind](tmp_path / longest, *loaded_flux(QuantConfig("nf4")))
    assert [path.name for path in tmp_path.iterdir()] == [longest]


@POSIX
@pytest.mark.parametrize("kind", SAVERS)
def test_a_longer_name_is_refused_before_anything_is_written(kind, loaded_flux, tmp_path):
    def written(done, total):
        pytest.fail("it was written")

    longer = tmp_path / ("x" * (os.pathconf(tmp_path, "PC_NAME_MAX") + 1))
    with pytest.raises(SaveError, match="x: was not saved: its name is too long .* Choose a shorter name"):
        SAVERS[kind](longer, *loaded_flux(QuantConfig("nf4")), progress=written)
    assert list(tmp_path.iterdir()) == []


@POSIX
def test_what_keeps_the_new_file_from_being_removed_does_not_hide_the_cause(tmp_path):
    folder = tmp_path / "folder"
    with pytest.raises(SaveError, match="model: was not saved"), atomic_file(folder / "model"):
        shutil.rmtree(folder)
        folder.write_bytes(b"a file where the folder was")


@POSIX
@pytest.mark.parametrize("kind", SAVERS)
def test_a_file_system_that_cannot_sync_folders_is_saved_to(kind, loaded_flux, tmp_path, monkeypatch):
    break_folder_sync(monkeypatch, errno.EINVAL)
    SAVERS[kind](tmp_path / "model", *loaded_flux(QuantConfig("nf4")))
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@POSIX
def test_a_disk_error_while_a_folder_is_synced_is_told(tmp_path, monkeypatch):
    break_folder_sync(monkeypatch, errno.EIO)
    with pytest.raises(SaveError, match="model: was not saved"), atomic_file(tmp_path / "model") as file:
        file.write(b"new")


def break_folder_sync(monkeypatch, number: int):
    sync = os.fsync

    def fsync(file):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(number, os.strerror(number))
        sync(file)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_new_file_takes_the_place_of_the_old_one(tmp_path):
    (tmp_path / "model").write_bytes(b"old")
    with atomic_file(tmp_path / "model") as file:
        file.write(b"new")
        assert (tmp_path / "model").read_bytes() == b"old"
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]
