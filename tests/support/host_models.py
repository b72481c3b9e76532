"""Models and text encoders of the host in this process: loading them, LoRAs on them, and the bits that they hold."""

from __future__ import annotations

import comfy.model_detection
import comfy.model_patcher
import comfy.sd
import pytest
import torch
from quantflux.nodes.host.flux_model import unet_config
from quantflux.nodes.host.text_encoder import load_flux_clip
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import plain_tensors
from quantflux.quant_core.source import clip_l_source, flux_source, t5_source


def stock_flux(path, **options) -> comfy.model_patcher.ModelPatcher:
    """A FLUX of any size by the host's own loader, for whose heads and widths older hosts have constants."""
    found = unet_config(flux_source(open_checkpoint(path), QuantConfig("none")).model)
    sizes = {name: found[name] for name in ("num_heads", "axes_dim", "context_in_dim", "vec_in_dim")}
    detect = comfy.model_detection.detect_unet_config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            comfy.model_detection, "detect_unet_config", lambda *args, **kwargs: detect(*args, **kwargs) | sizes
        )
        return comfy.sd.load_diffusion_model(str(path), model_options=options)


def with_loras(
    patcher: comfy.model_patcher.ModelPatcher, *loras: dict[str, torch.Tensor], strength: float = 1.0
) -> comfy.model_patcher.ModelPatcher:
    """A clone with these on it, in their order, as LoraLoaderModelOnly makes it."""
    for one in loras:
        patcher = comfy.sd.load_lora_for_models(patcher, None, one, strength, 0.0)[0]
    assert patcher.patches, "the model has no layer of these names"
    return patcher


def clip_of(folder, config: QuantConfig, t5_path=None) -> comfy.sd.CLIP:
    """The ``t5.safetensors`` of the folder, or another T5, packed; with the folder's ``clip_l.safetensors``."""
    t5 = t5_source(open_checkpoint(t5_path or folder / "t5.safetensors"), config)
    return load_flux_clip(t5, clip_l_source(open_checkpoint(folder / "clip_l.safetensors")))


def bits(module: torch.nn.Module) -> list[torch.Tensor]:
    """Copies of all parameters: of a packed one its bytes and its statistics."""
    return [part.clone() for tensor in module.parameters() for part in plain_tensors(tensor)]
