"""What packing each layer alone does to a model's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from ..config import QuantConfig
from ..layouts import nbytes, quantize
from ..quality import relative_error
from .costs import Cost

Progress = Callable[[int, int], None]


@torch.no_grad()
def sensitivity(
    velocity: Callable[[], torch.Tensor],
    weights: Mapping[str, torch.Tensor],
    put: Callable[[str, torch.Tensor], None],
    recipes: Sequence[QuantConfig],
    progress: Progress | None = None,
) -> list[Cost]:
    """Pack one layer after the other, alone, and measure how far the output goes from where it was.

    Evaluate in float32: in 16 bit, any change of an early layer makes the later ones round otherwise, which costs the
    same at every precision and hides what the precision itself costs.

    Args:
        velocity: evaluates the model on the calibration inputs; the same inputs and noise at each call.
        weights: layer -> its 16-bit weight ``(rows, columns)``.
        put: makes a weight, packed or plain, the one that ``velocity`` multiplies by. At the end every layer has its
            own again, also if something is raised.
        recipes: how each layer is packed in turn; precision ``none`` costs nothing and is not evaluated.
        progress: called with (evaluations done, evaluations in all); what it raises ends the measurement.

    Returns:
        a cost for each layer and recipe, layer after layer in the order of ``weights``; ``squared_error`` is
        ``|v - v16|² / |v16|²`` over all calibration inputs.
    """
    reference = velocity()
    packing = [recipe for recipe in recipes if recipe.precision != "none"]
    costs: list[Cost] = []
    done, total = 0, len(weights) * len(packing)
    for layer, weight in weights.items():
        try:
            for recipe in recipes:
                if recipe.precision == "none":
                    costs.append(Cost(layer, recipe, weight.nbytes, 0.0))
                    continue
                packed = quantize(weight, recipe)
                put(layer, packed)
                costs.append(Cost(layer, recipe, nbytes(packed), relative_error(reference, velocity()) ** 2))
                done += 1
                if progress is not None:
                    progress(done, total)
        finally:
            put(layer, weight)
    return costs


def ranked(costs: Sequence[Cost]) -> list[Cost]:
    """The costs of one recipe, or of several, the most harmful first."""
    return sorted(costs, key=lambda cost: -cost.squared_error)
