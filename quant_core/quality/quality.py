"""Everything that a comparison of a model with its reference found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .layers import LayerError
from .steps import StepError


@dataclass(frozen=True)
class Quality:
    """Errors of a model against its reference; all are relative, 0 where nothing differs.

    Attributes:
        settings: how was sampled, in words.
        velocity: error of the velocity over all steps together, on the reference's trajectory.
        weight: error of all compared weights together; None where none could be compared.
        notes: what was left out, and why.
    """

    settings: str
    steps: Sequence[StepError]
    velocity: float
    layers: Sequence[LayerError] = ()
    weight: float | None = None
    notes: Sequence[str] = ()

    @property
    def drift(self) -> float:
        """Relative distance of the two final latents."""
        return self.steps[-1].drift

    @property
    def has_outputs(self) -> bool:
        return any(layer.output is not None for layer in self.layers)

    def worst(self, count: int) -> list[LayerError]:
        """The layers with the largest errors, of their outputs if those were compared, else of their weights."""

        def error(layer: LayerError) -> float:
            found = layer.output if self.has_outputs else layer.weight
            # what is not a number is worse than any that is
            return -1.0 if found is None else float("inf") if found != found else found

        return sorted((layer for layer in self.layers if error(layer) >= 0), key=error, reverse=True)[:count]
