"""The host's modules and the small FLUX in this process, for what needs to look inside a model."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from comfy_host import has_accelerator, host_root
from tiny_workflow import ASSETS

TRANSFORMER, T5, CLIP_L = (ASSETS / f"{name}.safetensors" for name in ("flux_tiny", "t5_tiny", "clip_l_tiny"))


def use_host() -> None:
    """Make the host's modules importable. Call it before anything imports them."""
    sys.path.insert(0, str(host_root()))
    import comfy.cli_args

    # before anything imports comfy.model_management, which looks for a device at once
    comfy.cli_args.args.cpu = not has_accelerator()


def conditionings(prompts: Iterable[str], guidance: float, t5: Path = T5, clip_l: Path = CLIP_L) -> list[Any]:
    """CONDITIONING of each prompt, by text encoders at 16 bit."""
    import node_helpers
    from quantflux.nodes.host.text_encoder import load_flux_clip
    from quantflux.quant_core.checkpoint import open_checkpoint
    from quantflux.quant_core.config import QuantConfig
    from quantflux.quant_core.source import clip_l_source, t5_source

    clip = load_flux_clip(t5_source(open_checkpoint(t5), QuantConfig("none")), clip_l_source(open_checkpoint(clip_l)))
    found = [clip.encode_from_tokens_scheduled(clip.tokenize(prompt)) for prompt in prompts]
    return [node_helpers.conditioning_set_values(one, {"guidance": guidance}) for one in found]


def empty_latent(pixels: int) -> dict[str, Any]:
    """A square LATENT of FLUX."""
    import torch

    return {"samples": torch.zeros(1, 16, pixels // 8, pixels // 8)}
