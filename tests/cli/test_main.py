"""The command line before anything runs."""

import subprocess
import sys

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
    ],
)
def test_arguments_that_cannot_be_used_end_with_status_2(arguments, message, capsys):
    assert main(["run", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def workflow(tmp_path):
    path = tmp_path / "workflow.json"
    path.write_text('{"1": {"class_type": "A", "inputs": {}}}')
    return str(path)


def test_a_server_that_does_not_answer_is_named(workflow, capsys):
    assert main(["run", workflow, "--server", "127.0.0.1:1"]) == 1
    assert "no ComfyUI answers at http://127.0.0.1:1" in capsys.readouterr().err


def test_a_host_that_does_not_start_shows_the_end_of_its_log_and_keeps_it_on_request(workflow, tmp_path, capsys):
    root, log = tmp_path / "ComfyUI", tmp_path / "host.log"
    (root / "comfy").mkdir(parents=True)
    (root / "comfy" / "cli_args.py").touch()
    (root / "main.py").write_text("print('no such device'); raise SystemExit(3)")
    assert main(["run", workflow, "--comfyui", str(root), "--log", str(log), "--", "--cpu"]) == 1
    error = capsys.readouterr().err
    assert f"ComfyUI in {root} ended with status 3" in error
    assert "no such device" in error
    assert log.read_text().strip() == "no such device"
