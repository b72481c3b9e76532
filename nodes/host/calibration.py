"""What each layer of a host's FLUX costs at each precision, measured on prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import comfy.model_management
import comfy.sample
import comfy.utils
import torch

from ...quant_core.config import QuantConfig
from ...quant_core.errors import ConfigError
from ...quant_core.layouts import is_packed
from ...quant_core.mixed import Cost, candidates, sensitivity
from .operations import PackedLinear

Call = tuple[torch.Tensor, torch.Tensor, dict[str, Any]]
Velocity = Callable[[], torch.Tensor]


def calibrate(
    model: Any,
    positives: Sequence[Any],
    latent: Mapping[str, torch.Tensor],
    steps: int,
    seed: int,
    config: QuantConfig,
    progress: Callable[[int, int], None] | None = None,
) -> list[Cost]:
    """Measure the costs that ``auto`` in ``skip_modules`` goes by; :func:`write_costs` keeps them beside the model.

    The model is run once for each prompt, layer and recipe, at each of ``steps`` points of the way from noise to
    picture.

    Args:
        model: from Load Quantized Transformer at precision ``none`` and compute dtype ``float32``, without LoRAs.
        positives: the host's CONDITIONING of each prompt, with its guidance.
        latent: an empty LATENT, which gives the size.
        seed: of the first prompt's noise; each further one has the next.
        config: which recipes are measured, see :func:`candidates`.

    Raises:
        ConfigError: the model's weights are not plain ones of this project's loader.
    """
    layers = _plain_layers(model)
    velocity = velocity_on(model, calls_along(model, positives, latent, steps, seed))

    def put(name: str, weight: torch.Tensor):
        comfy.utils.set_attr_param(layers[name], "weight", weight)

    weights = {name: layer.weight for name, layer in layers.items()}
    return sensitivity(velocity, weights, put, candidates(config), progress)


def calls_along(
    model: Any, positives: Sequence[Any], latent: Mapping[str, torch.Tensor], steps: int, seed: int
) -> list[Call]:
    """The model's inputs, (latents, noise levels, conditions), at each step of sampling each of the ``positives``."""
    calls: list[Call] = []

    def record(apply_model, arguments):
        calls.append((arguments["input"].clone(), arguments["timestep"].clone(), dict(arguments["c"])))
        return apply_model(arguments["input"], arguments["timestep"], **arguments["c"])

    recorder = model.clone()
    recorder.set_model_unet_function_wrapper(record)
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    for number, positive in enumerate(positives):
        noise = comfy.sample.prepare_noise(samples, seed + number)
        comfy.sample.sample(
            recorder, noise, steps, 1.0, "euler", "simple", positive, positive, samples,
            disable_pbar=True, seed=seed + number,
        )  # fmt: skip
    return calls


def velocity_on(model: Any, calls: Sequence[Call]) -> Velocity:
    """A function that predicts the velocity ``(x - denoised) / sigma`` on all ``calls``, as one flat tensor."""

    def velocity() -> torch.Tensor:
        comfy.model_management.load_models_gpu([model])
        found = []
        for x, sigma, conditions in calls:
            denoised = model.model.apply_model(x, sigma, **conditions)
            found.append(((x - denoised) / sigma.reshape(-1, *[1] * (x.ndim - 1))).flatten())
        return torch.cat(found)

    return velocity


def _plain_layers(model: Any) -> dict[str, PackedLinear]:
    transformer = getattr(model.model, "diffusion_model", None)
    modules = [] if transformer is None else transformer.named_modules()
    layers = {name: layer for name, layer in modules if isinstance(layer, PackedLinear)}
    if not layers or any(is_packed(layer.weight) for layer in layers.values()) or model.patches:
        raise ConfigError(
            "Only 16-bit weights without LoRAs can be calibrated. Load the model's 16-bit file by Load Quantized "
            "Transformer with precision none."
        )
    return layers
