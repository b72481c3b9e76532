"""One prediction of a small FLUX, by the host's class and by diffusers', on the same inputs."""

from __future__ import annotations

import comfy.model_management
import torch
from quantflux.quant_core.config import QuantConfig

TEXT_TOKENS, SIDE = 16, 8


def inputs(side: int = SIDE) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "latent": torch.randn(1, 16, side, side, generator=generator),
        "context": torch.randn(1, TEXT_TOKENS, 128, generator=generator),
        "pooled": torch.randn(1, 64, generator=generator),
    }


def predict(patcher, as_it_lies: bool = False, side: int = SIDE, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One prediction of the host's transformer, as the sampler would ask for it: loaded as far as there is room, or
    with its layers where they are. ``side`` is that of the latents, ``dtype`` that of all inputs."""
    if not as_it_lies:
        comfy.model_management.load_models_gpu([patcher])
    x = {name: tensor.to(patcher.load_device, dtype) for name, tensor in inputs(side).items()}
    time = torch.tensor([0.5], device=patcher.load_device, dtype=dtype)
    guidance = torch.tensor([3.5], device=patcher.load_device, dtype=dtype)
    transformer = patcher.model.diffusion_model
    return transformer(x["latent"], time, x["context"], x["pooled"], guidance).float().cpu()


def predict_with_diffusers(model) -> torch.Tensor:
    x = inputs()
    half = SIDE // 2
    ids = torch.zeros(half, half, 3)
    ids[..., 1] += torch.arange(half)[:, None]
    ids[..., 2] += torch.arange(half)[None, :]
    patches = x["latent"].reshape(1, 16, half, 2, half, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, half * half, 64)
    y = model(
        hidden_states=patches,
        encoder_hidden_states=x["context"],
        pooled_projections=x["pooled"],
        timestep=torch.tensor([0.5]),
        guidance=torch.tensor([3.5]),
        img_ids=ids.reshape(-1, 3),
        txt_ids=torch.zeros(TEXT_TOKENS, 3),
        return_dict=False,
    )[0]
    return y.reshape(1, half, half, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 16, SIDE, SIDE)


def prediction_bound(config: QuantConfig) -> float:
    """How far predictions with the same packed weights may be apart.

    LLM.int8() rounds activations, and a last bit that differs may round to another step: inputs apart by 1e-6 gave
    predictions that differ by 6e-4 to 1.1e-3, where those of 4 bit differ by 1e-6. Hosts differ in such last bits.
    """
    return 3e-3 if config.precision == "int8" else 1e-4


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()
