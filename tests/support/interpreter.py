"""Triton's interpreter, for kernels where there is no GPU to run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

# Triton reads it when it is imported, so a process is either interpreted or not
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def output_of_interpreted_tests(file: str, folder: Path, **environment: str) -> str:
    """What pytest prints of the tests in ``file``, run in a process of its own with Triton interpreted.

    Args:
        folder: to run in: not the repository's root, which must stay off sys.path.

    Raises:
        AssertionError: a test failed.
    """
    program = "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", program, file, "-q"],
        env=os.environ | {"TRITON_INTERPRET": "1"} | environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:]
    return result.stdout
