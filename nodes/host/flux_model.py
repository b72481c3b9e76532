"""The host's own FLUX class around packed weights."""

from __future__ import annotations

import comfy.model_detection
import comfy.model_management as memory
import torch

from ...quant_core.config import FLOAT8
from ...quant_core.flux.config import PATCH_SIZE, FluxConfig
from ...quant_core.kernels import triton_available
from ...quant_core.kernels.fp8 import require_float8
from ...quant_core.kernels.int8_ahead import compile_ahead
from ...quant_core.layouts.int8 import require_int8
from ...quant_core.memory import largest_weight_nbytes, planned_nbytes
from ...quant_core.quantize import load
from ...quant_core.source import Source
from .between import use_ours
from .compute_dtype import transformer_dtype
from .conditioning import keep_conditioning
from .operations import multiply_blocks_in_float8, operations
from .patcher import PackedModelPatcher
from .placement import make_room
from .progress import progress_bar
from .saving import remember

# What sampling needs beside the weights, in the host's measure: hundredths of a MiB for each latent pixel and each byte
# of the dtype. Measured on an H100 at 1024x1024 (2026-11-25), scratch for the largest unpacked layer included: 0.55 GiB
# for 4 bit, which is 1.7, 0.56 GiB for LLM.int8() by our kernels, and 0.98 GiB, 3.1, by those of bitsandbytes; the rest
# is margin. The host's own figure for FLUX is 3.1: with it a layer of a 4-bit FLUX.1-dev would stay off a card of which
# 8 GiB are left for the host.
WORKSPACE, WORKSPACE_OF_BITSANDBYTES_INT8 = 2.0, 3.4


def load_flux_model(source: Source) -> PackedModelPatcher:
    """Read, quantize and build a MODEL.

    Raises:
        ConfigError: the device cannot run the precision.
        CheckpointError: the file cannot be read to the end.
    """
    device, offload_device = memory.get_torch_device(), memory.unet_offload_device()
    if source.uses_int8:
        require_int8(device)
    if source.config.compute_dtype == FLOAT8:
        require_float8(device)
    destination = make_room(device, offload_device, planned_nbytes(source), largest_weight_nbytes(source))
    tensors = load(source, device, destination, progress_bar())
    # LLM.int8() files do not say which dtype their weights had; the biases beside them do
    stored = tensors["img_in.bias" if source.recipe("img_in").precision == "int8" else "img_in.weight"].dtype
    dtype = transformer_dtype(source.config.compute_dtype, stored, device)
    if source.uses_int8:
        compile_ahead(device, dtype, source.config.int8_threshold)

    # what the host itself sees in the shapes; older ones assume FLUX.1-dev's heads, newer ones want fields of their own
    detected = comfy.model_detection.detect_unet_config(tensors, "")
    model_config = comfy.model_detection.model_config_from_unet_config(detected | unet_config(source.model), tensors)
    manual_cast = memory.unet_manual_cast(dtype, device, model_config.supported_inference_dtypes)
    model_config.set_inference_dtype(dtype, manual_cast)
    model_config.custom_operations = operations(source.config.compute_dtype)
    model = model_config.get_model(tensors, "")
    model.load_model_weights(tensors, "")
    multiply_blocks_in_float8(model.diffusion_model)
    use_ours(model.diffusion_model)
    remember(model.diffusion_model, source)
    precision = "int8" if source.uses_int8 else source.config.precision
    model.memory_usage_factor = workspace(precision, device) or model.memory_usage_factor

    patcher = PackedModelPatcher(model, load_device=device, offload_device=offload_device)
    keep_conditioning(patcher)
    if destination == device and not memory.is_device_cpu(device):
        # in place already: tell the host, so that it counts the model and can unload it
        patcher.patch_model(device)
        memory.load_models_gpu([patcher], force_full_load=True)
    return patcher


def workspace(precision: str, device: torch.device) -> float | None:
    """The host's ``memory_usage_factor`` for a packed FLUX that runs on ``device``; None: the host's own."""
    if precision == "none":
        return None
    return WORKSPACE_OF_BITSANDBYTES_INT8 if precision == "int8" and not triton_available(device) else WORKSPACE


def unet_config(config: FluxConfig) -> dict:
    """``config`` in the terms of the host's ``Flux`` class, which counts channels before patching."""
    return {
        "image_model": "flux",
        "in_channels": config.in_channels // PATCH_SIZE**2,
        "out_channels": config.out_channels // PATCH_SIZE**2,
        "patch_size": PATCH_SIZE,
        "vec_in_dim": config.vec_in_dim,
        "context_in_dim": config.context_in_dim,
        "hidden_size": config.hidden_size,
        "mlp_ratio": config.mlp_size / config.hidden_size,
        "num_heads": config.num_heads,
        "depth": config.depth,
        "depth_single_blocks": config.depth_single_blocks,
        "axes_dim": config.axes_dim,
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": config.guidance_embed,
    }


def diffusion_model(patcher: PackedModelPatcher) -> torch.nn.Module:
    """The transformer inside a MODEL."""
    return patcher.model.diffusion_model
