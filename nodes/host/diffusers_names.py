"""What diffusers calls the modules of the host's models."""

from __future__ import annotations

from collections import defaultdict

import comfy.model_base
import comfy.utils

# class of the host's model -> the host's own map from diffusers' tensors, which it has for LoRAs
_MAPS = {
    "Flux": "flux_to_diffusers",
    "SD3": "mmdit_to_diffusers",
    "AuraFlow": "auraflow_to_diffusers",
    "PixArt": "pixart_to_diffusers",
    "Lumina2": "z_image_to_diffusers",
}
_UNET = "unet_to_diffusers"  # empty for other models


def diffusers_names(model: comfy.model_base.BaseModel) -> dict[str, list[str]]:
    """Module of the transformer or U-Net inside ``model`` -> the diffusers modules that it is made of.

    Of models that the host has no map for, none: there only the host's names are known. Some are diffusers' own, as in
    Qwen-Image; others are not, as in Wan.
    """
    maps = [find for name, find in _MAPS.items() if isinstance(model, getattr(comfy.model_base, name))]
    found = defaultdict(list)
    for diffusers, native in getattr(comfy.utils, maps[0] if maps else _UNET)(model.model_config.unet_config).items():
        if diffusers.endswith(".weight"):
            # with an offset, or with a function, where several make up one
            whole = native if isinstance(native, str) else native[0]
            found[whole.removesuffix(".weight")].append(diffusers.removesuffix(".weight"))
    return found
