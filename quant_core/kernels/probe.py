"""The smallest kernel: it tells whether Triton compiles and runs on a device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _store_one(out):
    tl.store(out, 1)


def probe(device: torch.device) -> bool:
    """Whether a kernel compiles, runs on ``device`` and writes what it should; raises what Triton raises."""
    out = torch.zeros(1, dtype=torch.int32, device=device)
    with torch.cuda.device(device):
        _store_one[(1,)](out)
    return out.item() == 1
