"""What the host says of the device that it computes on, and which dtypes it will take there."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import comfy.model_base
import comfy.model_management as memory
import comfy.supported_models
import torch

from ...quant_core.config import PRECISIONS
from ...quant_core.errors import ConfigError
from ...quant_core.kernels import triton_available
from ...quant_core.kernels.fp8 import require_float8
from ...quant_core.layouts.int8 import require_int8
from ...quant_core.plan import Card, Variant
from ...quant_core.plan.activations import LATENT
from ...quant_core.source import Source
from .compute_dtype import encoder_dtype, transformer_dtype
from .flux_model import workspace

CHANNELS = 16  # of FLUX's latents
DECODE_VALUES_PER_PIXEL = 2178  # by which the host judges: VAE.memory_used_decode in comfy/sd.py
VAE_DTYPES = [torch.bfloat16, torch.float32]  # that the host runs image VAEs in
FLUX = comfy.supported_models.Flux
MIB = 2**20
# CUDA's kernels and libraries, loaded at their first use: by so much less of a model stayed on an H100 than its free
# memory at the start of the process would have held (2026-11-25, 4, 6 and 8 GiB)
FIRST_USE = 390 * MIB


def card(width: int, height: int, batch: int) -> Card:
    """The device and its memory at the moment, and what the host will leave free there for pictures of this size."""
    device = memory.get_torch_device()
    is_cpu = memory.is_device_cpu(device)
    state = memory.VRAMState.DISABLED if is_cpu else memory.vram_state
    limited = (memory.VRAMState.NORMAL_VRAM, memory.VRAMState.LOW_VRAM)
    reserve = {
        (precision, dtype.itemsize): _sampling_reserve(precision, dtype, width, height, batch, device)
        for precision in PRECISIONS
        for dtype in (torch.bfloat16, torch.float32)
    }
    vae_dtype = memory.vae_dtype(memory.vae_device(), VAE_DTYPES)
    return Card(
        name="main memory" if is_cpu else str(memory.get_torch_device_name(device)),
        is_cpu=is_cpu,
        total=int(memory.get_total_memory(device)),
        free=int(memory.get_free_memory(device)),
        loaded=0 if is_cpu else _loaded(device),
        workspace=_cublas_workspace(device),
        reserve=reserve,
        encoder_reserve=int(memory.minimum_inference_memory()),
        least_share=memory.MIN_WEIGHT_MEMORY_RATIO,
        whole=state not in (*limited, memory.VRAMState.NO_VRAM) or (state in limited and not memory.lowvram_available),
        none=state == memory.VRAMState.NO_VRAM,
        buffers=memory.NUM_STREAMS + 1,
        encoder_on_cpu=not is_cpu and memory.is_device_cpu(memory.text_encoder_device()),
        vae_on_cpu=not is_cpu and memory.is_device_cpu(memory.vae_device()),
        vae_dtype=vae_dtype,
        decode_estimate=DECODE_VALUES_PER_PIXEL * width * height * vae_dtype.itemsize,
        int8=_runs(require_int8, device),
        float8=_runs(require_float8, device),
        fused=triton_available(device),
        first_use=_first_use(device),
    )


def dtypes(variant: Variant) -> tuple[torch.dtype, torch.dtype]:
    """(dtype of FLUX's activations, dtype of the products of T5), as the loaders choose them."""
    wanted = variant.t5.config.compute_dtype
    return activation_dtype(variant.transformer), encoder_dtype(wanted, memory.text_encoder_device())


def activation_dtype(source: Source) -> torch.dtype:
    """The dtype that the host will run the FLUX of ``source`` in."""
    device = memory.get_torch_device()
    stored = source.tensors["img_in.bias" if source.recipe("img_in").precision == "int8" else "img_in.weight"].dtype
    dtype = transformer_dtype(source.config.compute_dtype, stored, device)
    return memory.unet_manual_cast(dtype, device, FLUX.supported_inference_dtypes) or dtype


def _sampling_reserve(
    precision: str, dtype: torch.dtype, width: int, height: int, batch: int, device: torch.device
) -> int:
    """Bytes that the host leaves beside the transformer, by its own formula, as ``load_models_gpu`` does.

    Args:
        dtype: of the activations; the host asks for its size alone.
    """
    like_flux = SimpleNamespace(
        memory_usage_factor=workspace(precision, device) or FLUX.memory_usage_factor,
        memory_usage_factor_conds=(),
        memory_usage_shape_process={},
        manual_cast_dtype=None,
        get_dtype=lambda: dtype,
        get_dtype_inference=lambda: dtype,
    )
    shape = [batch, CHANNELS, height // LATENT, width // LATENT]
    needed = comfy.model_base.BaseModel.memory_required(like_flux, shape)
    return int(max(memory.minimum_inference_memory(), needed + memory.extra_reserved_memory()))


def _loaded(device: torch.device) -> int:
    models = memory.current_loaded_models
    return int(sum(m.model_loaded_memory() for m in models if m.device == device and m.model is not None))


def _first_use(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    allocated = torch.cuda.memory_stats(device).get("allocated_bytes.all.allocated", 0)
    return FIRST_USE if allocated < MIB else 0


def _cublas_workspace(device: torch.device) -> int:
    """Bytes of the buffer that torch gives to cuBLAS: 32 MiB on Hopper and Blackwell, else 8.125 MiB.

    Source: ``parseChosenWorkspaceSize`` in torch's aten/src/ATen/cuda/CublasHandlePool.cpp.
    """
    if device.type != "cuda" or torch.version.hip:
        return 0
    return 32 * MIB if torch.cuda.get_device_capability(device)[0] in (9, 10) else 8 * MIB + MIB // 8


def _runs(require: Callable[[torch.device], None], device: torch.device) -> bool:
    try:
        require(device)
    except ConfigError:
        return False
    return True
