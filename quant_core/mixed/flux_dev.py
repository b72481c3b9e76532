"""What the blocks of FLUX.1-dev cost, for models that nobody has calibrated."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from ..config import QuantConfig
from ..flux.config import FluxConfig
from ..layouts import dequantize, quantize
from ..quality import relative_error

HIDDEN, DOUBLE_BLOCKS, SINGLE_BLOCKS = 3072, 19, 38
FOUR_BIT_KINDS, EIGHT_BIT_KIND = ("Q4_0", "Q4_1", "Q4_K_S"), "Q8_0"


def has_its_blocks(model: FluxConfig) -> bool:
    """Whether ``model`` has the blocks of FLUX.1-dev, as its finetunes, Fill, Kontext and schnell have."""
    return (model.hidden_size, model.depth, model.depth_single_blocks) == (HIDDEN, DOUBLE_BLOCKS, SINGLE_BLOCKS)


def flux_dev_costs(recipes: Sequence[QuantConfig]) -> dict[str, dict[str, float]]:
    """Block -> label of each of the ``recipes`` -> squared error of the last hidden state, in the unit of the source.

    The blocks were measured in GGUF's kinds. A kind's rounding error says what a recipe's is: the block's own part is
    taken at 4 bit and scaled by what the recipe does to Gaussian weights.
    """
    reference = gaussian_error(QuantConfig("nf4"))
    scales = {recipe.describe(): gaussian_error(recipe) / reference for recipe in recipes}
    return {block: {label: error * scale for label, scale in scales.items()} for block, error in four_bit().items()}


def measured() -> dict[str, dict[str, float]]:
    """Block -> GGUF kind -> mean squared error, as published."""
    text = Path(__file__).with_name("flux_dev_costs.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {_name(int(row.pop("block"))): {kind: float(error) for kind, error in row.items()} for row in rows}


def four_bit() -> dict[str, float]:
    """Block -> what 4 bit costs over 8 bit.

    An early block costs about the same at every kind, 8 bit included (block 0: 61 of 184), though 8 bit rounds 250
    times finer in squares. That part comes with any change, of the 16-bit roundings that follow, and tells nothing of
    the precision; nor does it add up over blocks. So it is taken away.
    """
    return {
        block: sum(errors[kind] for kind in FOUR_BIT_KINDS) / len(FOUR_BIT_KINDS) - errors[EIGHT_BIT_KIND]
        for block, errors in measured().items()
    }


@lru_cache(maxsize=32)
def gaussian_error(recipe: QuantConfig) -> float:
    """Squared relative error of Gaussian weights packed by ``recipe``."""
    weight = torch.randn(64, HIDDEN, generator=torch.Generator().manual_seed(0))
    return relative_error(weight, dequantize(quantize(weight, recipe), torch.float32)) ** 2


def _name(block: int) -> str:
    return f"double_blocks.{block}" if block < DOUBLE_BLOCKS else f"single_blocks.{block - DOUBLE_BLOCKS}"
