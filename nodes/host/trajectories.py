"""Sampling runs of the host whose every step is kept, and another model's predictions along them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import torch

from ...quant_core.errors import ConfigError
from ...quant_core.quality import Trajectory

SCHEDULERS = tuple(comfy.samplers.KSampler.SCHEDULERS)
SAMPLER = "euler"  # one prediction a step, at the step's own latent


@dataclass(frozen=True)
class Sampling:
    """What both models sample with.

    Attributes:
        noise, latent: of one shape; the latent is all zeros for a picture from nothing.
        mask: where to paint, or None for everywhere.
        sigmas: noise levels, one more than there are steps.
        conditions: the host's CONDITIONING, by ``positive`` and perhaps ``negative``.
    """

    noise: torch.Tensor
    latent: torch.Tensor
    mask: torch.Tensor | None
    sigmas: torch.Tensor
    conditions: Mapping[str, Any]
    cfg: float
    seed: int

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


def same_sampling(
    reference: Any, model: Any, latent: Mapping[str, Any], positive: Any, negative: Any,
    steps: int, scheduler: str, cfg: float, seed: int,
) -> Sampling:  # fmt: skip
    """Noise and schedule as the host's KSampler would make them for ``reference``, at full denoise.

    Raises:
        ConfigError: the models cannot sample alike, or an input cannot be used.
    """
    if scheduler not in SCHEDULERS:
        # older hosts let any text through
        raise ConfigError(f"scheduler is {scheduler!r}. Use one of {', '.join(SCHEDULERS)}.")
    if not positive:
        # the host would predict zeros of it, whatever the model
        raise ConfigError("positive is empty: it holds no prompt. Connect CLIP Text Encode, or what else makes one.")
    if negative is None and cfg != 1.0:
        raise ConfigError(f"cfg is {cfg:g}, which needs a negative prompt. Connect negative, or set cfg to 1.")
    kinds = [_kind(patcher) for patcher in (reference, model)]
    if kinds[0] != kinds[1]:
        raise ConfigError(
            f"reference and model cannot be compared: the reference is {' '.join(map(str, kinds[0]))} and the model "
            f"{' '.join(map(str, kinds[1]))} (prediction, channels, dimensions of latents). "
            "Connect the same model at another precision."
        )
    sigmas = comfy.samplers.calculate_sigmas(reference.get_model_object("model_sampling"), scheduler, steps)
    if not sigmas.isfinite().all():
        # kl_optimal divides by the number of steps less one
        raise ConfigError(
            f"scheduler {scheduler} has no noise levels for {steps} steps. Set more steps, or use simple."
        )
    # newer hosts fit an empty latent to models of other scales too
    wanted = list(inspect.signature(comfy.sample.fix_empty_latent_channels).parameters)[2:]
    fitted = comfy.sample.fix_empty_latent_channels(reference, latent["samples"], *(latent.get(n) for n in wanted))
    return Sampling(
        noise=comfy.sample.prepare_noise(fitted, seed, latent.get("batch_index")),
        latent=fitted,
        mask=latent.get("noise_mask"),
        sigmas=sigmas,
        conditions={"positive": positive} if negative is None else {"positive": positive, "negative": negative},
        cfg=cfg,
        seed=seed,
    )


def sampled(patcher: Any, sampling: Sampling, progress: Callable[[], None]) -> Trajectory:
    """``patcher`` on its own way from the noise to the picture; ``progress`` is called after each step."""
    latents, sigmas, denoised = [], [], []

    def keep(x: torch.Tensor, sigma: torch.Tensor, prediction: torch.Tensor):
        for kept, tensor in ((latents, x), (sigmas, sigma), (denoised, prediction)):
            kept.append(_on_cpu(tensor))
        progress()

    euler = comfy.samplers.ksampler(SAMPLER).sampler_function

    def function(*args, **kwargs) -> torch.Tensor:
        final = euler(*args, **kwargs)
        latents.append(_on_cpu(final))
        return final

    _run(patcher, sampling, function, keep)
    return Trajectory(latents, sigmas, denoised)


def predictions_along(
    patcher: Any, sampling: Sampling, trajectory: Trajectory, progress: Callable[[], None]
) -> list[torch.Tensor]:
    """What ``patcher`` makes of each latent of another model's ``trajectory``, denoised, on the CPU."""
    found = []

    def function(model, x, sigmas, extra_args, **_) -> torch.Tensor:
        options = {name: extra_args[name] for name in ("model_options", "seed")}
        for latent, sigma in zip(trajectory.latents[:-1], trajectory.sigmas, strict=True):
            # past the sampler's own handling of masks: these latents have been through it
            x = model.inner_model(latent.to(x.device), sigma.to(x.device), **options)
        return x

    def keep(x: torch.Tensor, sigma: torch.Tensor, prediction: torch.Tensor):
        found.append(_on_cpu(prediction))
        progress()

    _run(patcher, sampling, function, keep)
    return found


class _Guider(comfy.samplers.CFGGuider):
    """The host's guider, which also hands each of its predictions on: ``keep(x, sigma, denoised)``."""

    keep: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]

    def __call__(self, x, timestep, *args, **kwargs):
        denoised = super().__call__(x, timestep, *args, **kwargs)
        self.keep(x, timestep, denoised)
        return denoised


def _run(patcher: Any, sampling: Sampling, function: Callable, keep: Callable):
    """The host's sampling pipeline with ``function`` as the sampler: it loads the model and prepares the conditions."""
    guider = _Guider(patcher)
    guider.inner_set_conds(sampling.conditions)
    guider.set_cfg(sampling.cfg)
    guider.keep = keep
    guider.sample(
        sampling.noise, sampling.latent, comfy.samplers.KSAMPLER(function), sampling.sigmas,
        denoise_mask=sampling.mask, disable_pbar=True, seed=sampling.seed,
    )  # fmt: skip


def _kind(patcher: Any) -> tuple[str, int, int]:
    """(what is predicted, channels of latents, their dimensions)"""
    latent_format = patcher.get_model_object("latent_format")
    return patcher.model.model_type.name, latent_format.latent_channels, latent_format.latent_dimensions


def _on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True)
