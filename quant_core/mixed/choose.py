"""A model's recipes under a budget: which table of costs holds for it, and what the plan makes of it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ..assembly import Assembly
from ..checkpoint import Checkpoint
from ..config import QuantConfig
from ..errors import CheckpointError, ConfigError
from ..flux.config import FluxConfig
from ..layouts import packed_nbytes
from .costs import COSTS_SUFFIX, Cost, candidates, read_costs
from .flux_dev import flux_dev_costs, has_its_blocks
from .plan import BudgetError, plan
from .rounding import rounding_costs

GIB = 2**30
Table = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Choice:
    """
    Attributes:
        recipes: module -> how it is packed; those that stay at 16 bit are not in it.
        basis: where the costs came from, in a few words.
    """

    recipes: Mapping[str, QuantConfig]
    basis: str


def choose(
    checkpoint: Checkpoint,
    model: FluxConfig,
    tensors: Mapping[str, Assembly],
    modules: Iterable[str],
    config: QuantConfig,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Choice:
    """Choose a recipe for each of the ``modules``, such that the whole model keeps the budget of ``config``.

    The costs are those of the file ``<model file>.costs.csv``, if there is one; else, for models with the blocks of
    FLUX.1-dev, those measured there; else what packing does to the weights. Only the first knows what LLM.int8() does
    to the activations, so without it no layer of a 4-bit config gets int8. A layer that the costs do not name stays at
    16 bit.

    Args:
        tensors: all of the model.
        modules: linear modules whose precision is open.
        progress: called with (weights read, weights in all) where the costs are those of the weights; what it raises
            ends the choosing.

    Raises:
        ConfigError: the budget is too small.
        CheckpointError: the table of costs cannot be used, or the weights cannot be read.
    """
    shapes = model.linear_shapes()
    modules = list(modules)
    recipes = candidates(config)
    packing = [r for r in recipes if r.precision != "none" and (r.precision != "int8" or config.precision == "int8")]
    path = costs_path(checkpoint)
    table: Table
    if os.path.isfile(path):
        table, basis = read_costs(path), os.path.basename(path)
        _require_usable(path, table, recipes, shapes)
    elif has_its_blocks(model):
        table, basis = flux_dev_costs(packing), "costs measured on FLUX.1-dev"
    else:
        table, basis = rounding_costs(checkpoint, tensors, modules, packing, progress), "rounding errors of the weights"

    members = {layer: [m for m in modules if _is_within(m, layer)] for layer in table}
    costs = []
    for layer, own in members.items():
        numbers = sum(math.prod(shapes[m]) for m in own)
        whole = sum(math.prod(shape) for m, shape in shapes.items() if _is_within(m, layer))
        for recipe in recipes:
            if recipe.precision == "none":
                nbytes, error = sum(tensors[f"{m}.weight"].nbytes for m in own), 0.0
            elif recipe.describe() in table[layer]:
                nbytes = sum(packed_nbytes(shapes[m], recipe) for m in own)
                error = table[layer][recipe.describe()] * numbers / whole
            else:
                continue
            costs.append(Cost(layer, recipe, nbytes, error))

    # no more than all of the model at 16 bit: in bytes, a huge budget is infinite
    budget = math.floor(min(config.budget_gib * GIB, sum(tensor.nbytes for tensor in tensors.values())))
    open_names = {f"{m}.weight" for own in members.values() for m in own}
    fixed = sum(tensor.nbytes for name, tensor in tensors.items() if name not in open_names)
    try:
        chosen = plan(costs, budget - fixed)
    except BudgetError as error:
        least = math.ceil((fixed + error.smallest) / GIB * 1e4) / 1e4
        raise ConfigError(
            f"auto:{config.budget_gib:g} allows {config.budget_gib:g} GiB, but {checkpoint.name} takes {least:g} GiB "
            f"at the lowest precision of {config.precision}. Write auto:{least:g} or more in skip_modules"
            + (", or fewer modules beside it." if config.skip_modules else ".")
        ) from error
    of_module = {m: chosen[layer].recipe for layer, own in members.items() for m in own}
    return Choice({m: recipe for m, recipe in of_module.items() if recipe.precision != "none"}, basis)


def costs_path(checkpoint: Checkpoint) -> str:
    """Where the costs of a model are looked for: beside its file or folder."""
    return os.path.normpath(checkpoint.path) + COSTS_SUFFIX


def _is_within(module: str, layer: str) -> bool:
    return module == layer or module.startswith(layer + ".")


def _require_usable(path: str, table: Table, recipes: list[QuantConfig], shapes: Mapping[str, tuple[int, int]]):
    """Check that a file of costs is of this model, and knows a recipe that is wanted."""
    remedy = "Calibrate this model again, or remove the file."
    for module in shapes:
        covering = [layer for layer in table if _is_within(module, layer)]
        if len(covering) > 1:
            raise CheckpointError(path, f"covers {module} twice: by {' and by '.join(covering)}.", remedy)
    for layer in table:
        if not any(_is_within(module, layer) for module in shapes):
            raise CheckpointError(path, f"names {layer}, which the model does not have.", remedy)
    wanted = [recipe.describe() for recipe in recipes if recipe.precision != "none"]
    if not any(label in errors for errors in table.values() for label in wanted):
        raise CheckpointError(
            path,
            f"has no costs of {', '.join(wanted)}.",
            "Calibrate the model at these, set precision and blocksize to what the file has, or remove it.",
        )
