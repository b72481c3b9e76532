"""The command line before anything runs."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from quantflux.cli import extras, main

HEAVY = ("torch", "comfy", "diffusers", "bitsandbytes", "PIL", "ray", "comfy_cli")


def test_it_imports_nothing_heavy():
    code = f"import sys, quantflux.cli, quantflux.cli.run; print([m for m in {HEAVY} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_what_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch, capsys):
    monkeypatch.setitem(extras.MODULES, "run", ("requests", "no_such_module_here"))
    assert main(["run", "workflow.json"]) == 2
    assert "no_such_module_here not installed. To go on: python -m pip install -e " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.json"], "gone.json cannot be read"),
        (["gone.json", "--server", "x", "--comfyui", "y"], "--server names one that runs"),
        (["gone.json", "--server", "x", "--log", "y"], "--server names one that runs"),
        (["gone.json", "--ray", "x", "--log", "y"], "--ray starts none here"),
        (["gone.json", "--server", "x", "--", "--lowvram"], "--server names one that runs"),
        (["gone.json", "--", "--cpu", "--port", "9000"], "--port: a ComfyUI that is started here has an address"),
        (["gone.json", "--", "--listen=0.0.0.0"], "--listen=0.0.0.0: a ComfyUI that is started here has an address"),
        (["gone.json", "--ray", "x", "--", "--tls-keyfile", "x"], "give its address by --server"),
    ],
)
def test_arguments_that_cannot_be_used_end_with_status_2(arguments, message, capsys):
    assert main(["run", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["-1", "0", "nan", "soon"])
def test_a_timeout_that_is_no_time_ends_with_status_2(seconds, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", "gone.json", "--timeout", seconds])
    assert ended.value.code == 2
    assert f"--timeout: {seconds} is not a number of seconds above 0" in capsys.readouterr().err


@pytest.fixture
def workflow(tmp_path):
    path = tmp_path / "workflow.json"
    path.write_text('{"1": {"class_type": "A", "inputs": {}}}')
    return str(path)


def test_a_server_that_does_not_answer_is_named(workflow, capsys):
    assert main(["run", workflow, "--server", "127.0.0.1:1"]) == 1
    assert "no ComfyUI answers at http://127.0.0.1:1" in capsys.readouterr().err


def test_without_standard_error_the_status_still_tells(workflow, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)  # as after 2>&-
    assert main(["run", workflow, "--server", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().out == ""


@pytest.fixture
def comfyui(tmp_path):
    """A folder with as much of a ComfyUI as is looked at before it is started."""
    root = tmp_path / "ComfyUI"
    (root / "comfy").mkdir(parents=True)
    (root / "comfy" / "cli_args.py").touch()
    (root / "main.py").touch()
    return root


def test_a_log_that_cannot_be_written_ends_with_status_2_and_leaves_nothing(
    workflow, comfyui, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before, log = set(tmp_path.iterdir()), tmp_path / "gone" / "host.log"
    assert main(["run", workflow, "--comfyui", str(comfyui), "--log", str(log), "--", "--cpu"]) == 2
    assert f"the log {log} cannot be written: No such file or directory" in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent to a process group")
def test_ctrl_c_while_the_accelerator_is_looked_for_ends_quietly_and_leaves_nothing(workflow, comfyui, tmp_path):
    # In the place of torch, whose import takes seconds, a module that takes until it is stopped.
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "torch.py").write_text("import os, time\nopen(os.environ['LOOKED'], 'w')\ntime.sleep(60)")
    looked, scratch = tmp_path / "looked", tmp_path / "scratch"
    scratch.mkdir()
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "modules"), "TMPDIR": str(scratch), "LOOKED": str(looked)}
    code = "import sys, quantflux.cli; sys.exit(quantflux.cli.main())"
    command = [sys.executable, "-c", code, "run", workflow, "--comfyui", str(comfyui)]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not looked.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "quantflux: interrupted\n")
    assert not list(scratch.iterdir())


def test_a_host_that_does_not_start_shows_the_end_of_its_log_and_keeps_it_on_request(
    workflow, comfyui, tmp_path, capsys
):
    root, log = comfyui, tmp_path / "host.log"
    (root / "main.py").write_text("print('no such device'); raise SystemExit(3)")
    assert main(["run", workflow, "--comfyui", str(root), "--log", str(log), "--", "--cpu"]) == 1
    error = capsys.readouterr().err
    assert f"ComfyUI in {root} ended with status 3" in error
    assert "no such device" in error
    assert log.read_text().strip() == "no such device"
