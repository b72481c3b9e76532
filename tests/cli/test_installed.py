"""Which ComfyUI is started, and that none outlives the program which started it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from quantflux.cli import child, installed
from quantflux.cli.errors import HostError
from quantflux.cli.installed import find_comfyui


@pytest.fixture
def comfyui(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)

    def make(name):
        root = tmp_path / name
        (root / "custom_nodes" / "quantflux").mkdir(parents=True)
        (root / "main.py").touch()
        return root

    return make


def test_an_argument_goes_before_the_variable_and_that_before_the_place_of_the_pack(comfyui, monkeypatch):
    around, named, given = comfyui("around"), comfyui("named"), comfyui("given")
    monkeypatch.setattr(installed, "PACK", around / "custom_nodes" / "quantflux")
    assert find_comfyui(None) == around
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert find_comfyui(None) == named
    assert find_comfyui(str(given)) == given


def test_without_any_the_ways_to_name_one_are_told(comfyui, monkeypatch, tmp_path):
    comfyui("unused")
    monkeypatch.setattr(installed, "PACK", tmp_path)
    with pytest.raises(HostError, match=r"--comfyui or COMFYUI_PATH.*--server"):
        find_comfyui(None)


@pytest.mark.parametrize("by", ["--comfyui", "COMFYUI_PATH"])
def test_a_folder_without_comfyui_is_named_with_what_named_it(comfyui, monkeypatch, tmp_path, by):
    comfyui("unused")
    if by == "COMFYUI_PATH":
        monkeypatch.setenv(by, str(tmp_path))
    with pytest.raises(HostError, match=rf"no ComfyUI in {tmp_path}.*give {by}"):
        find_comfyui(str(tmp_path) if by == "--comfyui" else None)


def test_a_child_ends_when_its_starter_is_killed(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)")
    starter = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, {child.__file__!r}, {str(script)!r}], stdin=subprocess.PIPE)\n"
        "time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", starter])
    pid = _wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    _wait_for(lambda: not _runs(int(pid)))


def test_a_child_is_run_as_python_runs_a_script(tmp_path):
    script = tmp_path / "main.py"
    script.write_text("import sys\nprint(__name__, __file__, sys.argv, sys.path[0])\nraise SystemExit(3)")
    command = [sys.executable, child.__file__, script, "--flag"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        printed = process.stdout.read()  # standard input stays open until the script has ended by itself
    assert process.returncode == 3
    assert printed.strip() == f"__main__ {script} {[str(script), '--flag']} {tmp_path}"


def _wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")  # killed, but not yet collected, counts as gone
    return not (status.exists() and "State:\tZ" in status.read_text())
