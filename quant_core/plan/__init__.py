"""What a model will take on a card, from the headers of its files and the size of the picture; nothing is loaded."""

from .card import Card
from .plan import Plan, Row, plan
from .turns import Turn
from .variants import Variant, variants

__all__ = ["Card", "Plan", "Row", "Turn", "Variant", "plan", "variants"]
