"""Whether the host can run on a GPU. As a program, for callers that do not import torch: its exit status says so."""

from __future__ import annotations

import sys


def has_accelerator() -> bool:
    """Return whether torch sees a GPU that the host can run on."""
    import torch

    return torch.cuda.is_available() or torch.xpu.is_available()


if __name__ == "__main__":
    sys.exit(not has_accelerator())
