"""The turns of every variant on one card, and the best that fits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .activations import Tokens
from .card import Card
from .turns import Turn, decoding, encoding, sampling
from .variants import Variant


@dataclass(frozen=True)
class Row:
    """One config's turns.

    Attributes:
        lacks: the arithmetic that the device would need for it and has not, such as ``8 bit``; None for nothing.
    """

    label: str
    asked: bool
    lacks: str | None
    sampling: Turn
    encoding: Turn
    decoding: Turn
    card: Card

    @property
    def usable(self) -> bool:
        """Whether the device can run it."""
        return self.lacks is None

    @property
    def needed(self) -> int:
        """Bytes on the device at the largest moment: of the sampling turn on a GPU, where models take turns; on a CPU
        they all stay in memory."""
        turns = self.sampling, self.encoding, self.decoding
        if not self.card.is_cpu:
            return self.sampling.peak
        return sum(turn.weights.nbytes for turn in turns) + max(turn.scratch + turn.activations for turn in turns)

    @property
    def fits(self) -> bool:
        """Whether the transformer stays whole on the device, with room for what sampling needs."""
        return self.usable and self.sampling.is_whole and self.needed <= self.card.available


@dataclass(frozen=True)
class Plan:
    """Rows from the closest to 16 bit to the least close.

    Attributes:
        best: the first that fits whole; None if none does.
        smallest: the usable one with the fewest bytes offloaded, then needed.
    """

    width: int
    height: int
    batch: int
    tokens: Tokens
    card: Card
    rows: Sequence[Row]

    @property
    def best(self) -> Row | None:
        return next((row for row in self.rows if row.fits), None)

    @property
    def smallest(self) -> Row | None:
        usable = [row for row in self.rows if row.usable]
        return min(usable, key=lambda row: (row.sampling.offloaded, row.needed), default=None)


def plan(
    variants: Sequence[Variant],
    width: int,
    height: int,
    batch: int,
    card: Card,
    dtypes: Callable[[Variant], tuple[torch.dtype, torch.dtype]],
) -> Plan:
    """What each variant takes for ``batch`` pictures of ``width`` × ``height`` pixels.

    Args:
        dtypes: a variant -> (dtype of FLUX's activations, dtype of the products of T5), as the host chooses them.
    """
    tokens = Tokens.of(width, height, batch)
    decode = decoding(width, height, batch, card)
    rows = []
    for variant in variants:
        dtype, encoder_dtype = dtypes(variant)
        turns = sampling(variant.transformer, tokens, dtype, card), encoding(variant.t5, encoder_dtype, card), decode
        rows.append(Row(variant.label, variant.asked, variant.lacks_of(card), *turns, card))
    return Plan(width, height, batch, tokens, card, rows)
