"""What the pack needs of the host and of bitsandbytes: checked at loading, so that nothing is missed while drawing."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

OLDEST = "0.3.75"
OLDEST_BITSANDBYTES = "0.50"

# module of the host -> what is taken from it
SYMBOLS = {
    "comfy.ldm.flux.layers": ("QKNorm",),
    "comfy.lora": ("calculate_weight",),
    "comfy.model_base": ("BaseModel", "Flux"),
    "comfy.model_detection": ("detect_unet_config", "model_config_from_unet_config"),
    "comfy.model_management": (
        "InterruptProcessingException", "MIN_WEIGHT_MEMORY_RATIO", "NUM_STREAMS", "VRAMState",
        "current_loaded_models", "current_stream", "device_supports_non_blocking", "extra_reserved_memory",
        "free_memory", "get_free_memory", "get_offload_stream", "get_torch_device", "get_torch_device_name",
        "get_total_memory", "is_device_cpu", "load_models_gpu", "lowvram_available", "minimum_inference_memory",
        "module_size", "pin_memory", "processing_interrupted", "should_use_bf16", "sync_stream",
        "text_encoder_device", "text_encoder_offload_device", "throw_exception_if_processing_interrupted",
        "unet_manual_cast", "unet_offload_device", "unpin_memory", "vae_device", "vae_dtype", "vram_state",
    ),
    "comfy.model_patcher": ("LowVramPatch", "ModelPatcher", "wipe_lowvram_weight"),
    "comfy.ops": ("CastWeightBiasOp", "manual_cast", "run_every_op"),
    "comfy.patcher_extension": ("CallbacksMP", "WrapperExecutor", "WrappersMP"),
    "comfy.quant_ops": ("QuantizedTensor",),
    "comfy.sample": ("fix_empty_latent_channels", "prepare_noise", "sample"),
    "comfy.samplers": ("CFGGuider", "KSAMPLER", "KSampler", "calculate_sigmas", "ksampler"),
    "comfy.sd": ("CLIP", "CLIPType", "load_text_encoder_state_dicts"),
    "comfy.supported_models": ("Flux",),
    "comfy.utils": ("ProgressBar", "get_attr", "set_attr_param"),
    "comfy.weight_adapter": ("WeightAdapterBase",),
    "comfy_api.latest": ("ComfyExtension", "io"),
    "comfy_api.torch_helpers": ("set_torch_compile_wrapper",),
    "comfy_execution.utils": ("get_executing_context",),
    "folder_paths": (
        "get_filename_list", "get_folder_paths", "get_full_path", "get_output_directory", "get_save_image_path",
    ),
}  # fmt: skip
# what the host calls on its patcher and ours answers otherwise: under another name, packed weights would be patched as
# plain ones are, without effect and without an error
PATCHER_METHODS = (
    "_load_list", "add_hook_patches", "clone", "get_key_patches", "load", "model_size", "partially_load",
    "partially_unload", "patch_weight_to_device", "pin_weight_to_device", "unpatch_model", "unpin_weight",
)  # fmt: skip


# what is called of torch.ops.bitsandbytes
OPERATORS = (
    "dequantize_4bit", "dequantize_blockwise", "gemm_4bit", "int8_linear_matmul", "int8_mixed_scaled_mm",
    "int8_mm_dequant", "int8_scaled_mm", "int8_vectorwise_dequant", "int8_vectorwise_quant",
)  # fmt: skip


class HostTooOldError(RuntimeError):
    """The host lacks something that the pack cannot do without."""


class BitsandbytesTooOldError(RuntimeError):
    """The installed bitsandbytes lacks an operator that the pack calls."""


def require_host(symbols: Mapping[str, tuple[str, ...]] = SYMBOLS, methods: tuple[str, ...] = PATCHER_METHODS):
    """Check that the host has everything that is listed.

    Raises:
        HostTooOldError: it has not.
    """
    missing = [f"{module}.{name}" for module, names in symbols.items() for name in names if not _has(module, name)]
    patcher = "comfy.model_patcher.ModelPatcher"
    if _has(*patcher.rsplit(".", 1)):
        known = importlib.import_module("comfy.model_patcher").ModelPatcher
        missing += [f"{patcher}.{name}" for name in methods if not hasattr(known, name)]
    if missing:
        raise HostTooOldError(
            f"QuantFlux needs ComfyUI {OLDEST} or newer. This one, {_version()}, lacks {', '.join(missing)}. "
            "Update ComfyUI. If it is newer than the pack, update QuantFlux."
        )


def require_bitsandbytes(operators: tuple[str, ...] = OPERATORS):
    """Check that bitsandbytes has all ``operators``.

    Raises:
        BitsandbytesTooOldError: it has not.
        ModuleNotFoundError: it is not installed.
    """
    version = importlib.import_module("bitsandbytes").__version__
    missing = [name for name in operators if not hasattr(torch.ops.bitsandbytes, name)]
    if missing:
        raise BitsandbytesTooOldError(
            f"QuantFlux needs bitsandbytes {OLDEST_BITSANDBYTES} or newer, this Python has {version}, which lacks "
            f"{', '.join(missing)}. Install it, then start ComfyUI again: "
            f'"{sys.executable}" -m pip install -r "{Path(__file__).parents[2] / "requirements.txt"}"'
        )


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            return False
        raise  # something else that the host itself needs is not installed: its own message says so


def _version() -> str:
    try:
        return importlib.import_module("comfyui_version").__version__
    except ModuleNotFoundError:
        return "of an unknown version"
