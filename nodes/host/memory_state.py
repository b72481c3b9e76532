"""What models hold, and what the host and the process say of memory."""

from __future__ import annotations

from typing import Any

import comfy.model_management as memory
import psutil
import torch

from ...quant_core.memory import Held, Inventory

ENCODERS = {"t5xxl": "T5", "clip_l": "CLIP-L"}


def held_by(model: Any = None, clip: Any = None, vae: Any = None) -> list[Held]:
    """What a MODEL, a CLIP and a VAE hold at the moment, by component, group and place.

    LoRAs count once they are attached, which the host does at the first use.
    """
    inventory = Inventory()
    if model is not None:
        inventory.add("Transformer", model.model, (backup.weight for backup in model.backup.values()))
    if clip is not None:
        backups = clip.patcher.backup
        for name, encoder in clip.cond_stage_model.named_children():
            originals = [backup.weight for key, backup in backups.items() if key.startswith(name + ".")]
            inventory.add(ENCODERS.get(name, name), encoder, originals)
    if vae is not None:
        inventory.add("VAE", vae.first_stage_model, (backup.weight for backup in vae.patcher.backup.values()))
    return inventory.held()


def process_memory(model: Any = None, clip: Any = None, vae: Any = None) -> dict[str, dict[str, int]]:
    """Heading -> what -> bytes: of the device, of the host's accounts, and of the main memory.

    Resets the device's peak.
    """
    device = memory.get_torch_device()
    described = {}
    if not memory.is_device_cpu(device):
        described[f"VRAM of {device}"] = _device_memory(device)
    patchers = {"model": model, "clip": clip and clip.patcher, "vae": vae and vae.patcher}
    accounts = {}
    for name, patcher in patchers.items():
        if patcher is not None:
            accounts |= {f"{name}, size": patcher.model_size(), f"{name}, loaded": patcher.loaded_size()}
    described["ComfyUI's accounts"] = accounts | {f"free on {device}": memory.get_free_memory(device)}
    ram = psutil.virtual_memory()
    described["Main memory"] = {
        "this process": psutil.Process().memory_info().rss,
        "available": ram.available,
        "total": ram.total,
    }
    return described


def _device_memory(device: torch.device) -> dict[str, int]:
    # torch.cuda, torch.xpu; other backends may not count
    backend = getattr(torch, device.type, None)
    if not hasattr(backend, "max_memory_allocated"):
        return {"total": memory.get_total_memory(device)}
    figures = {
        "allocated": backend.memory_allocated(device),
        "reserved": backend.memory_reserved(device),
        "peak since the last report": backend.max_memory_allocated(device),
        "total": memory.get_total_memory(device),
    }
    backend.reset_peak_memory_stats(device)
    return figures
