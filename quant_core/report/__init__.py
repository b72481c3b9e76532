"""Figures made readable: as text, and as pictures."""

from .memory_chart import memory_chart
from .memory_text import memory_text
from .quality_chart import quality_chart
from .quality_text import quality_csv, quality_text

__all__ = ["memory_chart", "memory_text", "quality_chart", "quality_csv", "quality_text"]
