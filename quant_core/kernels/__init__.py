"""Triton kernels, each beside a plain-torch reference; bitsandbytes serves where Triton does not."""

from __future__ import annotations

import functools
import logging

import torch

logger = logging.getLogger(__name__)

MIN_COMPUTE_CAPABILITY = (8, 0)  # Triton's own floor
SIXTEEN_BIT = (torch.bfloat16, torch.float16)


# a compiled model asks while it is traced: it would trace the cache's function instead, whose kernel has no graph
@torch.compiler.assume_constant_result
def triton_available(device: torch.device) -> bool:
    """Whether our Triton kernels run on ``device``: NVIDIA cards from Ampere on, where Triton can compile.

    Asked first for a device, a one-element kernel is compiled and run: Triton needs a C compiler, too, and where
    there is none it only shows then.
    """
    return _triton_available(device)


@functools.cache
def _triton_available(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < MIN_COMPUTE_CAPABILITY:
        return False
    try:
        from .probe import probe

        return probe(device)
    except torch.cuda.OutOfMemoryError:
        raise  # says nothing about Triton: it is asked again once there is room
    except Exception as error:  # whatever a compiler or a driver may raise
        logger.warning("Triton does not run here, bitsandbytes' kernels are used instead: %s", error)
        return False
