"""The host's own T5 and CLIP-L classes, the T5 around packed weights."""

from __future__ import annotations

import inspect
from dataclasses import asdict

import comfy.model_management as memory
import comfy.sd
import folder_paths
import torch

from ...quant_core.layouts.int8 import require_int8
from ...quant_core.memory import largest_weight_nbytes, planned_nbytes
from ...quant_core.quantize import load
from ...quant_core.source import Source
from .compute_dtype import encoder_dtype
from .operations import operations
from .patcher import PackedModelPatcher
from .placement import make_room
from .progress import progress_bar
from .saving import remember


def load_flux_clip(t5: Source, clip_l: Source) -> comfy.sd.CLIP:
    """Read, quantize and build a CLIP of T5 and CLIP-L.

    Raises:
        ConfigError: the device cannot run the precision.
        CheckpointError: a file cannot be read to the end.
    """
    device, offload_device = memory.text_encoder_device(), memory.text_encoder_offload_device()
    if t5.uses_int8:
        require_int8(device)
    # with --lowvram the host runs encoders on the CPU, where quantizing takes minutes
    quantizing = memory.get_torch_device() if memory.is_device_cpu(device) and t5.packed else device
    make_room(quantizing, offload_device, planned_nbytes(t5), largest_weight_nbytes(t5))
    t5_tensors = load(t5, quantizing, offload_device, progress_bar())
    clip_l_tensors = load(clip_l, offload_device)
    hidden = clip_l.model.hidden_size
    # FLUX does not use the projection, and files without it would make the host warn
    clip_l_tensors.setdefault("text_projection.weight", torch.eye(hidden, dtype=torch.float16))

    options = {
        "custom_operations": operations(encoder_dtype(t5.config.compute_dtype, device)),
        "t5xxl_model_config": asdict(t5.model),
        # the host replaces the second by the first when it has looked at the position embedding
        "model_config": asdict(clip_l.model),
        "clip_l_model_config": asdict(clip_l.model),
        "initial_device": offload_device,
    }
    clip = comfy.sd.load_text_encoder_state_dicts(
        [clip_l_tensors, t5_tensors],
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        clip_type=comfy.sd.CLIPType.FLUX,
        model_options=options,
        **_static_patcher(),
    )
    remember(clip.cond_stage_model.t5xxl.transformer, t5)
    # the host made, and on some devices already registered, a patcher of its own: a second one for the same model
    # would look like a leak to it
    clip.patcher.__class__ = PackedModelPatcher
    # where it registered it, it also measured the model, before the weights were there
    clip.patcher.size = 0
    if clip.patcher.loaded_size():
        clip.patcher.model.model_loaded_weight_memory = clip.patcher.model_size()
    return clip


def _static_patcher() -> dict[str, bool]:
    """Hosts from 0.18 would build a dynamic patcher, which cannot hold packed weights."""
    parameters = inspect.signature(comfy.sd.load_text_encoder_state_dicts).parameters
    return {"disable_dynamic": True} if "disable_dynamic" in parameters else {}
