"""What the registry, pip and the host read about the pack agrees with itself."""

import os
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest
from comfy_host import REPOSITORY
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image

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


def test_the_changelog_is_of_this_version():
    headings = re.findall(r"^## (.+)$", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    # work that is not released yet may stand above
    newest = next(heading for heading in headings if heading != "[Unreleased]")
    version, day = re.fullmatch(r"\[(.+)\] - (\d{4}-\d{2}-\d{2})", newest).groups()
    assert version == PROJECT["version"]
    date.fromisoformat(day)


def test_the_registry_finds_nothing_to_complain_about():
    command = [sys.executable, "-m", "comfy_cli", "--skip-prompt", "node", "validate"]
    environment = {**os.environ, "DO_NOT_TRACK": "1"}
    ran = subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, capture_output=True)
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0 and "All validation checks passed" in said, said
    assert "warning" not in said.lower(), said


@pytest.mark.parametrize("field", ["Icon", "Banner"])
def test_a_picture_of_the_registry_is_an_address_or_left_open(field):
    address = PYPROJECT["tool"]["comfy"][field]
    assert address == "" or re.fullmatch(rf"https://\S+/docs/{field.lower()}\.png", address)


def test_the_registrys_pictures_have_its_sizes():
    with Image.open(REPOSITORY / "docs" / "icon.png") as icon, Image.open(REPOSITORY / "docs" / "banner.png") as banner:
        assert icon.width == icon.height <= 400
        assert banner.width * 9 == banner.height * 21
    assert all((REPOSITORY / "docs" / f"{name}.png").stat().st_size < 50_000 for name in ("icon", "banner"))


def test_the_licence_is_apache_2():
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (REPOSITORY / "LICENSE").read_text()


def test_quant_core_imports_without_a_host():
    import quantflux.quant_core

    assert Path(quantflux.quant_core.__file__).parent == REPOSITORY / "quant_core"
