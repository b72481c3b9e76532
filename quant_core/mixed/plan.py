"""The best precision for each layer within a number of bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch

from ..errors import ConfigError
from .costs import Cost

MOST_STATES = 200_000


class BudgetError(ConfigError):
    """A budget that no choice of precisions keeps.

    Attributes:
        smallest: bytes that the layers take at the least.
    """

    def __init__(self, smallest: int, budget_bytes: int):
        self.smallest = smallest
        super().__init__(
            f"The layers take {smallest} bytes at the lowest precision, more than the budget of {budget_bytes}. "
            "Raise the budget, or allow a lower precision."
        )


def plan(costs: Iterable[Cost], budget_bytes: int) -> dict[str, Cost]:
    """One of its costs for each layer, such that the bytes keep the budget and the errors are least.

    Squared errors of layers are added: rounding errors of different layers are taken to be independent. That makes it
    a multiple-choice knapsack. A greedy walk along the convex hulls of the layers gives a choice and, by the price
    of a byte where it ends, a bound on every other. Partial choices that cannot beat it are dropped; what is left is
    searched to the end, so the result is the best one. Only where more than ``MOST_STATES`` partial choices compete
    are the least promising dropped, and the result may then be short of the best.
    Source of the method: Dyer, Riha and Walker, "A hybrid dynamic programming/branch-and-bound algorithm for the
    multiple-choice knapsack problem", J. Comput. Appl. Math. 58 (1995).

    Args:
        costs: every layer at the precisions that it may get.
        budget_bytes: for all layers together.

    Returns:
        layer -> the chosen cost.

    Raises:
        BudgetError: even the smallest choice is larger than the budget.
    """
    layers: dict[str, list[Cost]] = {}
    for cost in costs:
        layers.setdefault(cost.layer, []).append(cost)
    options = {layer: _undominated(found) for layer, found in layers.items()}
    smallest = sum(own[0].nbytes for own in options.values())
    if smallest > budget_bytes:
        raise BudgetError(smallest, budget_bytes)
    # more than all layers take changes nothing, and may be more than an int64 holds
    budget_bytes = min(budget_bytes, sum(own[-1].nbytes for own in options.values()))
    greedy, price = _greedy(options, budget_bytes)
    return _search(options, budget_bytes, greedy, price)


def predicted_error(chosen: Mapping[str, Cost]) -> float:
    """The squared error that a plan is expected to make."""
    return math.fsum(cost.squared_error for cost in chosen.values())


def _undominated(costs: Sequence[Cost]) -> list[Cost]:
    """Those that no smaller one equals in error, smallest first."""
    kept: list[Cost] = []
    for cost in sorted(costs, key=lambda cost: (cost.nbytes, cost.squared_error)):
        if not kept or cost.squared_error < kept[-1].squared_error:
            kept.append(cost)
    return kept


def _hull(options: Sequence[Cost]) -> list[Cost]:
    """Those on the lower convex hull: from each to the next, a byte saves less error than before."""
    hull: list[Cost] = []
    for cost in options:
        while len(hull) > 1 and _saving(hull[-2], hull[-1]) <= _saving(hull[-1], cost):
            hull.pop()
        hull.append(cost)
    return hull


def _saving(smaller: Cost, larger: Cost) -> float:
    """Squared error that each further byte saves."""
    return (smaller.squared_error - larger.squared_error) / (larger.nbytes - smaller.nbytes)


def _greedy(options: Mapping[str, Sequence[Cost]], budget_bytes: int) -> tuple[dict[str, Cost], float]:
    """(a choice, the price of a byte): steps along the hulls in the order of what a byte saves, as far as they fit."""
    chosen = {layer: own[0] for layer, own in options.items()}
    free = budget_bytes - sum(cost.nbytes for cost in chosen.values())
    hulls = (_hull(own) for own in options.values())
    steps = [pair for hull in hulls for pair in zip(hull, hull[1:], strict=False)]
    price = 0.0
    for smaller, larger in sorted(steps, key=lambda step: -_saving(*step)):
        if chosen[smaller.layer] is not smaller:
            continue
        if larger.nbytes - smaller.nbytes <= free:
            free -= larger.nbytes - smaller.nbytes
            chosen[larger.layer] = larger
        elif not price:
            price = _saving(smaller, larger)
    return chosen, price


def _search(
    options: Mapping[str, Sequence[Cost]], budget_bytes: int, greedy: dict[str, Cost], price: float
) -> dict[str, Cost]:
    sizes = [torch.tensor([cost.nbytes for cost in own]) for own in options.values()]
    errors = [torch.tensor([cost.squared_error for cost in own], dtype=torch.float64) for own in options.values()]
    # what the layers still to come take, and cost with their bytes paid for, at the least
    least_bytes, least_cost = [0], [0.0]
    for size, error in zip(reversed(sizes), reversed(errors), strict=True):
        least_bytes.append(least_bytes[-1] + int(size.min()))
        # in float64: a number times an integer tensor is float32, in which the bytes of a FLUX are off by hundreds
        least_cost.append(least_cost[-1] + float((error + price * size.double()).min()))
    best = predicted_error(greedy) * (1 - 1e-12)
    size, error = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
    steps: list[tuple[torch.Tensor, int]] = []
    for at, (own_size, own_error) in enumerate(zip(sizes, errors, strict=True), start=1):
        size = (size[:, None] + own_size).reshape(-1)
        error = (error[:, None] + own_error).reshape(-1)
        bound = error + price * (size - budget_bytes).double() + least_cost[-1 - at]
        left = torch.nonzero((size + least_bytes[-1 - at] <= budget_bytes) & (bound < best)).flatten()
        left = left[_pareto(size[left], error[left])]
        if len(left) > MOST_STATES:
            left = left[bound[left].argsort()[:MOST_STATES]]
        size, error = size[left], error[left]
        steps.append((left, len(own_size)))
    # the greedy choice is not among those left, and what is may be worse, with bytes to spare
    if not len(error) or float(error.min()) >= best:
        return greedy
    chosen: dict[str, Cost] = {}
    state = int(error.argmin())
    for (layer, own), (left, number) in zip(reversed(options.items()), reversed(steps), strict=True):
        state, option = divmod(int(left[state]), number)
        chosen[layer] = own[option]
    return {layer: chosen[layer] for layer in options}


def _pareto(size: torch.Tensor, error: torch.Tensor) -> torch.Tensor:
    """Indices of those that no other one equals in both, by size."""
    order = error.argsort(stable=True)
    order = order[size[order].argsort(stable=True)]
    error = error[order]
    before = torch.cat((error.new_full((1,), math.inf), error.cummin(0).values))[:-1]
    return order[error < before]
