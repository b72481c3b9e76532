"""What packing does to the weights themselves: all that is known of a model without calibration."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch

from ..assembly import Assembly
from ..checkpoint import Checkpoint
from ..config import QuantConfig
from ..layouts import dequantize, quantize
from ..quality import relative_error

ROWS = 64  # of each stored part of a weight


@torch.no_grad()
def rounding_costs(
    checkpoint: Checkpoint,
    tensors: Mapping[str, Assembly],
    modules: Collection[str],
    recipes: Sequence[QuantConfig],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, float]]:
    """Module -> label of each of the ``recipes`` -> squared relative error of its weight.

    It is that of a sample of rows, spread evenly: blocks and row scales lie within rows, or nearly so. Every layer is
    taken to pass on its relative error alike, so small layers, where a byte buys most, come first.

    Args:
        progress: called with (modules done, modules in all); what it raises ends the measurement.

    Raises:
        CheckpointError: the file cannot be read.
    """
    table: dict[str, dict[str, float]] = {}
    with checkpoint.reader() as reader:
        for module in modules:
            progress(len(table), len(modules))
            parts = [part.read(reader, torch.device("cpu")) for part in tensors[f"{module}.weight"].parts]
            sample = torch.cat([part[:: max(1, len(part) // ROWS)].float() for part in parts])
            packed = ((recipe.describe(), quantize(sample, recipe)) for recipe in recipes)
            table[module] = {
                label: relative_error(sample, dequantize(weight, torch.float32)) ** 2 for label, weight in packed
            }
    return table
