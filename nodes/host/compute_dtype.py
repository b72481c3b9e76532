"""The dtypes of products and activations, where the config leaves them open."""

from __future__ import annotations

import comfy.model_management as memory
import torch

from ...quant_core.config import inner_dtype


def transformer_dtype(wanted: torch.dtype | None, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype to run FLUX in: ``wanted``; else bfloat16 where ``device`` has it; else as ``stored``.

    The host casts from there to what the device can compute. float16 is never chosen over bfloat16, since FLUX can
    overflow in it (https://github.com/huggingface/diffusers/issues/9096).
    """
    if wanted is not None:
        return inner_dtype(wanted)
    return torch.bfloat16 if memory.should_use_bf16(device) else stored


def encoder_dtype(wanted: torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype of T5's products: ``wanted``; else bfloat16 where ``device`` has it; else float32.

    The host runs text encoders in float32, and T5 overflows in float16
    (https://github.com/huggingface/transformers/issues/9295).
    """
    if wanted is not None:
        return inner_dtype(wanted)
    return torch.bfloat16 if memory.should_use_bf16(device) else torch.float32
