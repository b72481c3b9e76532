"""The host's own T5 and CLIP-L classes, the T5 around packed weights."""

from __future__ import annotations

import inspect
from dataclasses import asdict

import comfy.model_management as memory
import comfy.sd
import folder_paths
import torch

from ...quant_core.errors import CheckpointError
from ...quant_core.layouts.int8 import require_int8
from ...quant_core.memory import largest_weight_nbytes, planned_nbytes
from ...quant_core.quantize import load
from ...quant_core.source import Source
from .compute_dtype import encoder_dtype
from .operations import PackedLinear, operations
from .patcher import PackedModelPatcher
from .placement import make_room
from .progress import progress_bar
from .saving import remember

T5_TOKENS = 32100  # of the tokenizer that the host has for FLUX; the embedding of T5 v1.1 has 28 more rows


def load_flux_clip(t5: Source, clip_l: Source) -> comfy.sd.CLIP:
    """Read, quantize and build a CLIP of T5 and CLIP-L.

    Raises:
        ConfigError: the device cannot run the precision.
        CheckpointError: the T5 is for another tokenizer than FLUX's, or a file cannot be read to the end.
    """
    _require_vocabulary(t5)
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
    transformer = clip.cond_stage_model.t5xxl.transformer
    if t5.config.compute_dtype == torch.float16:
        _multiply_in_range(transformer, encoder_dtype(None, device))
    remember(transformer, t5)
    # the host made, and on some devices already registered, a patcher of its own: a second one for the same model
    # would look like a leak to it
    clip.patcher.__class__ = PackedModelPatcher
    # where it registered it, it also measured the model, before the weights were there
    clip.patcher.size = 0
    if clip.patcher.loaded_size():
        clip.patcher.model.model_loaded_weight_memory = clip.patcher.model_size()
    return clip


def _require_vocabulary(t5: Source):
    """Check that the rows of the T5's embedding are those of the host's tokens."""
    vocabulary = t5.model.vocab_size
    # finetunes may have some more
    if not T5_TOKENS <= vocabulary < 2 * T5_TOKENS:
        raise CheckpointError(
            t5.checkpoint.path,
            f"has a vocabulary of {vocabulary} tokens, but FLUX's T5 has 32128; byT5's is smaller, mT5's larger.",
            "Choose T5-XXL v1.1 here, such as t5xxl_fp16.safetensors; for byT5 use DualCLIPLoader, with type "
            "hunyuan_image.",
        )


def _multiply_in_range(transformer: torch.nn.Module, dtype: torch.dtype):
    """Let the products that leave float16's range be of another ``dtype``: those at the end of each block, as in
    transformers' ``T5PreTrainedModel``."""
    for name, layer in transformer.named_modules():
        if isinstance(layer, PackedLinear) and name.endswith(".wo"):
            layer.compute_dtype = dtype


def _static_patcher() -> dict[str, bool]:
    """Hosts from 0.18 would build a dynamic patcher, which cannot hold packed weights."""
    parameters = inspect.signature(comfy.sd.load_text_encoder_state_dicts).parameters
    return {"disable_dynamic": True} if "disable_dynamic" in parameters else {}
