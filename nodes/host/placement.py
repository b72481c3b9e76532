"""Where a model is quantized and where it then waits for its first use."""

from __future__ import annotations

import comfy.model_management as memory
import torch

RESIDENT_STATES = (memory.VRAMState.NORMAL_VRAM, memory.VRAMState.HIGH_VRAM)


def make_room(device: torch.device, offload_device: torch.device, weights: int, largest_weight: int) -> torch.device:
    """Ask the host for room on ``device``, and say where the packed weights should go.

    Args:
        weights: bytes of the packed model.
        largest_weight: bytes of its largest layer at 16 bit, which quantizing needs besides.

    Returns:
        ``device`` if the whole model fits beside what sampling needs, else ``offload_device``.
    """
    if memory.is_device_cpu(device):
        return device
    # the layer as stored, and the float32 that bitsandbytes may make of it
    scratch = 3 * largest_weight
    if memory.vram_state not in RESIDENT_STATES:
        memory.free_memory(scratch, device)
        return offload_device
    needed = weights + scratch + memory.minimum_inference_memory()
    memory.free_memory(needed, device)
    return device if memory.get_free_memory(device) >= needed else offload_device
