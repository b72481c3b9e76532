"""What the registry, pip and the host read about the pack agrees with itself."""

from pathlib import Path

import pytest
from comfy_host import REPOSITORY
from packaging.requirements import Requirement
from packaging.version import Version

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def requirement_lines(name):
    lines = (REPOSITORY / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r"))]


def test_requirements_txt_equals_the_dependencies():
    assert requirement_lines("requirements.txt") == PROJECT["dependencies"]


def test_torch_is_left_to_the_host():
    assert not {Requirement(line).name for line in PROJECT["dependencies"]} & {"torch", "torchvision", "torchaudio"}


@pytest.mark.parametrize("line", PROJECT["dependencies"])
def test_a_dependency_is_a_floor_and_never_a_pin(line):
    assert [clause.operator for clause in Requirement(line).specifier] == [">="]


def test_the_version_is_static_and_the_name_is_registrable():
    assert "dynamic" not in PROJECT
    assert str(Version(PROJECT["version"])) == PROJECT["version"]
    assert "comfyui" not in PROJECT["name"].lower()


def test_the_licence_is_apache_2():
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text()


def test_quant_core_imports_without_a_host():
    import quantflux.quant_core

    assert Path(quantflux.quant_core.__file__).parent == REPOSITORY / "quant_core"
