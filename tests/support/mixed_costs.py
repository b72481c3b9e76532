"""Costs beside a model file, as a calibration would have written them."""

from __future__ import annotations

from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.memory import planned_nbytes
from quantflux.quant_core.mixed import Cost, candidates, write_costs
from quantflux.quant_core.source import Source, flux_source

GIB = 2**30
NF4, DOUBLE, FINE, SIXTEEN = "nf4", "nf4 double quant", "nf4 blocksize 32 double quant", "16-bit"
INT8 = "int8 threshold 2.5"
HARM = {DOUBLE: 1.01, FINE: 0.9, NF4: 1.0, INT8: 0.01, SIXTEEN: 0.0}  # of each recipe, against nf4


def source_of(path, budget_gib: float, **fields) -> Source:
    return flux_source(open_checkpoint(path), QuantConfig(**({"precision": "nf4"} | fields), budget_gib=budget_gib))


def nbytes_of(path, **fields) -> int:
    """Bytes of the model at one precision for all, by default nf4."""
    return planned_nbytes(flux_source(open_checkpoint(path), QuantConfig(**fields)))


def linears(path) -> list[str]:
    return [*flux_source(open_checkpoint(path)).model.linear_shapes()]


def write_model_costs(path, errors: dict[str, float]) -> None:
    """Put costs beside ``path``: layer -> squared error at nf4, the other recipes in proportion."""
    recipes = candidates(QuantConfig("nf4", int8_threshold=2.5))
    costs = [Cost(layer, r, 0, error * HARM[r.describe()]) for layer, error in errors.items() for r in recipes]
    write_costs(f"{path}.costs.csv", costs)
