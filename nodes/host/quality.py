"""A MODEL compared with its reference in the host: sampling, layers, and what could not be compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.model_management as memory

from ...quant_core.quality import LayerError, Quality, step_errors, weight_errors
from .layer_pairs import OutputErrors, OwnWeights, common, room_to_compare
from .progress import progress_bar
from .trajectories import SAMPLER, Sampling, predictions_along, sampled

RUNS = 3  # the reference, the model along the reference's way, the model on its own


def compared(reference: Any, model: Any, sampling: Sampling, scheduler: str, layer_outputs: bool) -> Quality:
    """Run both MODELs with the same ``sampling``, one after the other, and compare them.

    Args:
        layer_outputs: compare the outputs of single layers too, for which both are loaded at once.
    """
    weights = OwnWeights(reference), OwnWeights(model)
    names = common(*weights)
    advance = _counted(RUNS * sampling.steps + len(names))
    notes = _differences(*weights, names)

    outputs = OutputErrors(reference, model)
    if layer_outputs and outputs.possible:
        with outputs.measured(names) as both:
            ours = sampled(both, sampling, advance)
    else:
        ours = sampled(reference, sampling, advance)
        if layer_outputs:
            notes.append("Layer outputs not compared: reference and model are one model with different LoRAs.")
    along = predictions_along(model, sampling, ours, advance)
    own = sampled(model, sampling, advance).latents
    steps, velocity = step_errors(ours, along, own)

    device = room_to_compare(model, weights[0])
    of_weights, together = weight_errors(
        names, *weights, device, advance, memory.throw_exception_if_processing_interrupted
    )
    of_outputs = outputs.errors()
    if layer_outputs and outputs.possible and names and not of_outputs:
        notes.append("Layer outputs not compared: no layer was seen running. Connect the models without Compile.")
    if reference.patches or model.patches:
        notes.append("LoRAs took part in sampling and in layer outputs; weights are compared without them.")
    return Quality(
        settings=_settings(sampling, scheduler),
        steps=steps,
        velocity=velocity,
        layers=[LayerError(name, of_weights[name], of_outputs.get(name)) for name in names],
        weight=together if names else None,
        notes=notes,
    )


def _counted(total: int) -> Callable[[], None]:
    """A function that moves the node's bar by one of ``total``, and raises if the user cancelled."""
    bar, done = progress_bar(), 0

    def advance():
        nonlocal done
        done += 1
        bar(done, total)

    return advance


def _differences(reference: OwnWeights, model: OwnWeights, names: list[str]) -> list[str]:
    """What is said of layers that are not compared."""
    unreadable = (reference.unreadable | model.unreadable) & ({*reference} | reference.unreadable)
    missing = {*reference} - {*names} - unreadable
    notes = []
    if unreadable:
        notes.append(f"{len(unreadable)} layers are packed in a form that is not read here, and were left out.")
    if missing and names:
        notes.append(f"{len(missing)} layers of the reference are not in the model with the same name and shape.")
    elif missing:
        notes.append("No weights compared: no layer of the two has the same name and shape.")
    return notes


def _settings(sampling: Sampling, scheduler: str) -> str:
    size = "×".join(map(str, sampling.latent.shape))
    how = f"{sampling.steps} {SAMPLER} steps, {scheduler} schedule, cfg {sampling.cfg:g}, seed {sampling.seed}"
    return f"{how}, latent {size}"
