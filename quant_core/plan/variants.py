"""The configs that a plan compares."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from ..checkpoint import Checkpoint
from ..config import FLOAT8, QuantConfig
from ..source import Source, flux_source, t5_source
from .card import Card

# (precision, double_quant), from the closest to 16 bit to the least close
QUALITY = (("none", False), ("int8", False), ("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True))
ALWAYS = QUALITY[:-1]


@dataclass(frozen=True)
class Variant:
    """A transformer and a T5 under one config.

    Attributes:
        asked: it is the config that was given, or what the loaders take without one.
    """

    label: str
    transformer: Source
    t5: Source
    asked: bool

    @property
    def uses_int8(self) -> bool:
        return self.transformer.uses_int8 or self.t5.uses_int8

    def lacks_of(self, card: Card) -> str | None:
        """The arithmetic that it needs and ``card`` has not."""
        if self.uses_int8 and not card.int8:
            return "8 bit"
        return None if card.float8 or self.transformer.config.compute_dtype != FLOAT8 else "float8"


def variants(
    transformer: Checkpoint,
    t5: Checkpoint,
    config: QuantConfig | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Variant]:
    """Every precision, from the closest to 16 bit to the least close; of a packed model, or one that the skip list
    leaves as it is, only its own.

    All else, such as blocksize and skip list, is as ``config`` has it. A config with a budget has a row of its own.

    Args:
        progress: as in :func:`flux_source`.

    Raises:
        CheckpointError: a file is not what it should be, or is packed otherwise than ``config`` says.
    """
    budget = config is not None and config.budget_gib is not None
    uniform = dataclasses.replace(config, budget_gib=None) if budget else config
    asked = flux_source(transformer, uniform)
    asked_t5 = t5_source(t5, uniform)  # a budget is the transformer's
    if asked.is_packed:
        own = flux_source(transformer, config, progress) if budget else asked
        return [Variant(own.config.describe(), own, asked_t5, True)]
    packable = _packable(asked, transformer, flux_source)
    packable_t5 = asked_t5 if asked_t5.is_packed else _packable(asked_t5, t5, t5_source)
    if not packable.packed and not packable_t5.packed:
        # the skip list leaves nothing to quantize, at any precision
        return [Variant(QuantConfig("none").describe(), asked, asked_t5, True)]
    found = []
    for precision, double_quant in QUALITY:
        own = dataclasses.replace(packable.config, precision=precision, double_quant=double_quant)
        is_asked = asked.config.precision == precision
        is_asked = is_asked and (not own.is_four_bit or asked.config.double_quant == double_quant)
        if is_asked and budget:
            # each layer at least as close as this precision
            found.append(Variant(config.describe(), flux_source(transformer, config, progress), asked_t5, True))
        if is_asked or (precision, double_quant) in ALWAYS:
            # without a config, one of the two may have been saved at 16 bit to stay so, and the other not
            own_t5 = asked_t5 if is_asked or asked_t5.is_packed else _under(packable_t5, own)
            found.append(Variant(own.describe(), _under(packable, own), own_t5, is_asked and not budget))
    return found


def _packable(source: Source, checkpoint: Checkpoint, open_source) -> Source:
    """``source`` with all layers that its skip list does not name to be quantized."""
    if source.config.precision != "none":
        return source
    return open_source(checkpoint, dataclasses.replace(source.config, precision="nf4"))


def _under(source: Source, config: QuantConfig) -> Source:
    """``source`` quantized by ``config`` instead; only headers were read, so nothing has to be read again."""
    names = () if config.precision == "none" else source.packed
    return dataclasses.replace(source, config=config, packed=dict.fromkeys(names, config))
