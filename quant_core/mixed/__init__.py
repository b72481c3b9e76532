"""A precision for each layer: what each costs, and the best choice within a number of bytes."""

from .choose import choose
from .costs import COSTS_SUFFIX, Cost, candidates, read_costs, write_costs
from .plan import plan, predicted_error
from .sensitivity import ranked, sensitivity

__all__ = [
    "COSTS_SUFFIX",
    "Cost",
    "candidates",
    "choose",
    "plan",
    "predicted_error",
    "ranked",
    "read_costs",
    "sensitivity",
    "write_costs",
]
