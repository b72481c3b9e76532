"""Triton's interpreter, for kernels where there is no GPU to run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Triton reads it when it is imported, so a process is either interpreted or not
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
NO_DEVICE = "no device for the kernel"  # why tests are skipped that neither a GPU nor the interpreter can run


def run_interpreted(file: str, folder: Path, **environment: str) -> None:
    """Run the tests in ``file`` in a process of its own with Triton interpreted.

    Args:
        folder: to run in: not the repository's root, which must stay off sys.path.

    Raises:
        AssertionError: a test failed, or was skipped for want of a GPU all the same.
    """
    pytest.importorskip("triton", reason="needs Triton")
    program = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", program, file, "-q"],
        env=os.environ | {"TRITON_INTERPRET": "1"} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:]
    assert NO_DEVICE not in result.stdout
