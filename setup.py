"""Lists the subpackages under the mapped root; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

SUBPACKAGES = find_packages(include=["cli", "cli.*", "nodes", "nodes.*", "quant_core", "quant_core.*"])

setup(packages=["quantflux", *(f"quantflux.{name}" for name in SUBPACKAGES)])
