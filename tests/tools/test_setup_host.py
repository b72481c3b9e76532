"""Which requirements of a host count as not met."""

import pytest
from setup_host import unmet_requirements


def test_what_is_installed_is_met():
    assert unmet_requirements(["packaging", "pytest>=1", "Pillow", "", "# a comment", "packaging>=1  # why"]) == []


def test_another_version_is_not_met():
    assert unmet_requirements(["pytest==0.0.1"]) == ["pytest==0.0.1"]


def test_what_is_missing_is_not_met():
    assert unmet_requirements(["no-such-package-here>=1"]) == ["no-such-package-here>=1"]


def test_a_requirement_for_another_system_counts_as_met():
    assert unmet_requirements(['no-such-package-here; sys_platform == "amiga"']) == []


@pytest.mark.parametrize("line", ["torch==0.1", "comfyui-workflow-templates==0.7", "comfyui-workflow-templates-core"])
def test_torch_and_templates_count_as_met(line):
    assert unmet_requirements([line]) == []


def test_what_is_left_out_counts_as_met():
    assert unmet_requirements(["no-such-package-here"], left_out={"no-such-package-here"}) == []
