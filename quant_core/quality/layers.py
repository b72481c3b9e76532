"""Errors of single layers: of their weights, and of their outputs on the same inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from ..layouts import dequantize, is_packed
from .errors import Comparison


@dataclass(frozen=True)
class LayerError:
    """Relative errors of one layer, None where it was not compared.

    Attributes:
        weight: of its weight, dequantized if it is packed.
        output: of what it makes of the reference's inputs, over all steps.
    """

    name: str
    weight: float | None = None
    output: float | None = None


def weight_errors(
    names: Iterable[str],
    reference: Mapping[str, torch.Tensor],
    model: Mapping[str, torch.Tensor],
    device: torch.device | None = None,
    progress: Callable[[], None] = lambda: None,
    pause: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], float]:
    """Relative errors of the weights of these names, and that of all of them together.

    Packed weights are dequantized in float32, one at a time; the others are taken in their own dtype.

    Args:
        reference, model: name -> weight, packed or plain; each is asked for once, when its turn comes.
        device: where to compare; by default where each weight of ``reference`` is.
        progress: called after each weight.
        pause: called now and then within one; what it raises ends the comparison.

    Raises:
        ValueError: two weights of one name differ in shape.
    """
    errors, together = {}, Comparison()
    for name in names:
        plain = _plain(reference[name], device)
        other = _plain(model[name], plain.device)
        one = Comparison().add(plain, other, pause)
        errors[name] = one.relative_error
        together.include(one)
        progress()
    return errors, together.relative_error


def _plain(weight: torch.Tensor, device: torch.device | None) -> torch.Tensor:
    weight = weight if device is None else weight.to(device)
    return dequantize(weight, torch.float32) if is_packed(weight) else weight
