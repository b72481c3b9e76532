"""How far a model's predictions and its way through the noise are from those of its reference, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .errors import Comparison, relative_error


@dataclass(frozen=True)
class Trajectory:
    """What one sampling run went through, on the CPU. ``n`` is the number of steps.

    Attributes:
        latents: x_t before each step and after the last: ``n + 1`` tensors of one shape.
        sigmas: the noise level of each step, as the sampler gave it to the model: ``n`` tensors ``(batch,)``.
        denoised: what the model made of ``latents`` at each step: ``n`` tensors.
    """

    latents: Sequence[torch.Tensor]
    sigmas: Sequence[torch.Tensor]
    denoised: Sequence[torch.Tensor]


@dataclass(frozen=True)
class StepError:
    """Errors of one step, over the whole batch.

    Attributes:
        step: from 1.
        sigma: noise level.
        velocity: relative error of the velocity at the reference's x_t.
        cosine: of the angle between the two velocities there.
        drift: relative distance of the two latents after this step, each model on its own way from the same noise.
    """

    step: int
    sigma: float
    velocity: float
    cosine: float
    drift: float


def velocity(latent: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """dx/dσ = (x - denoised) / σ: the model's own output for flow models such as FLUX, guidance included.

    Source: Karras et al., https://arxiv.org/abs/2206.00364, equation 3.
    """
    sigma = sigma.double().reshape(-1, *[1] * (latent.ndim - 1))
    return (latent.double() - denoised.double()) / sigma


def step_errors(
    reference: Trajectory, on_reference: Sequence[torch.Tensor], own: Sequence[torch.Tensor]
) -> tuple[list[StepError], float]:
    """The errors of each step, and the relative error of the velocity over all steps together.

    Args:
        on_reference: what the other model makes of the reference's latents: ``n`` tensors.
        own: the other model's latents on its own way: ``n + 1``.
    """
    errors, together = [], Comparison()
    for i, (x, sigma, denoised, other) in enumerate(
        zip(reference.latents[:-1], reference.sigmas, reference.denoised, on_reference, strict=True)
    ):
        pair = velocity(x, denoised, sigma), velocity(x, other, sigma)
        one = Comparison().add(*pair)
        together.add(*pair)
        drift = relative_error(reference.latents[i + 1], own[i + 1])
        errors.append(StepError(i + 1, float(sigma.max()), one.relative_error, one.cosine, drift))
    return errors, together.relative_error
