"""Figures made readable: as text, and as pictures."""

from .memory_chart import memory_chart
from .memory_text import memory_text

__all__ = ["memory_chart", "memory_text"]
