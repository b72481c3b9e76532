"""Models quantized by the libraries themselves, to compare with."""

from __future__ import annotations

import diffusers
import torch
from diffusers.quantizers.bitsandbytes import bnb_quantizer


def quantized_by_diffusers(model, config, folder, monkeypatch, dtype: torch.dtype) -> diffusers.FluxTransformer2DModel:
    """``model`` as diffusers quantizes it while loading it in ``dtype``, on the CPU.

    diffusers' quantizers refuse to start without a GPU, though bitsandbytes needs none: that check is passed over.
    """
    for name in ("BnB4BitDiffusersQuantizer", "BnB8BitDiffusersQuantizer"):
        quantizer = getattr(bnb_quantizer, name)
        monkeypatch.setattr(quantizer, "validate_environment", lambda self, *args, **kwargs: None)
        monkeypatch.setattr(quantizer, "update_device_map", lambda self, device_map: {"": torch.device("cpu")})
    with torch.inference_mode(False):
        model.save_pretrained(folder)
        quantized = diffusers.FluxTransformer2DModel.from_pretrained(
            folder, torch_dtype=dtype, quantization_config=config.to_diffusers()
        )
    for module in quantized.modules():
        module.support_avx512bf16_for_cpu = False  # or Linear4bit repacks its weight at the first product
    return quantized
