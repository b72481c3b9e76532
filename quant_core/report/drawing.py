"""What all charts share: sizes of letters, colours, axes and legends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import ImageDraw, ImageFont

# Okabe and Ito, Color Universal Design, https://jfly.uni-koeln.de/color/: told apart without red or green
BLUE, SKY, ORANGE, GREEN, VERMILION = "#0072B2", "#56B4E9", "#E69F00", "#009E73", "#D55E00"
PURPLE, YELLOW, BLACK, MIDDLE_GREY, DARK_GREY = "#CC79A7", "#F0E442", "#000000", "#999999", "#666666"
PAPER, INK, SOFT, GRID, PALE = "#FFFFFF", "#1A1A1A", "#5A5A5A", "#DDDDDD", "#C4C4C4"
# twice what a canvas shows at 512 pixels: the smallest letters are 13 pixels high there
WIDTH, MARGIN = 1024, 40
TITLE, TEXT, SMALL = 38, 30, 26
LEGEND_ROW = 44
TICKS = 6  # at most


def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, which is on every machine."""
    return ImageFont.load_default(size)


def text(draw: ImageDraw.ImageDraw, at: tuple[float, float], words: str, ink: str, size: int, anchor: str = "la"):
    """Words with a border of paper, readable on top of grid lines."""
    draw.text(at, words, ink, font(size), anchor, stroke_width=6, stroke_fill=PAPER)
    draw.text(at, words, ink, font(size), anchor)


def fitted(words: str, room: float, sizes: Sequence[int], tail: str = "") -> tuple[str, int]:
    """(``words`` and ``tail``, the first of ``sizes`` at which they are at most ``room`` pixels long).

    Where none is small enough, the last, and the words without their end.
    """
    size = next((size for size in sizes if font(size).getlength(words + tail) <= room), sizes[-1])
    shown, letters = words + tail, font(size)
    while words and letters.getlength(shown) > room:
        words = words[:-1]
        shown = f"{words.rstrip()}…{tail}"
    return shown, size


def tick_step(largest: float) -> float:
    """The distance of ticks: 1, 2 or 5 times a power of ten, so that there are few.

    >>> tick_step(22.2), tick_step(0.7)
    (5.0, 0.2)
    """
    power = 10.0 ** math.floor(math.log10(largest / TICKS))
    # rounded to its digits, not to its places, of which errors may need more than any number
    return next(float(f"{power * m:.12g}") for m in (1, 2, 5, 10) if largest / (power * m) <= TICKS)


def horizontal_axis(draw: ImageDraw.ImageDraw, steps: int, step: float, unit: str, top: int, bottom: int):
    """Vertical grid lines from ``top`` to ``bottom`` over the width of the chart, labelled below."""
    for i in range(steps + 1):
        x = MARGIN + i * (WIDTH - 2 * MARGIN) / steps
        draw.line((x, top, x, bottom), GRID, 2)
        label = f"{i * step:g}" + (f" {unit}" if i == steps else "")
        anchor = "la" if i == 0 else "ra" if i == steps else "ma"
        draw.text((x, bottom + 10), label, SOFT, font(SMALL), anchor=anchor)


def legend_rows(names: Sequence[str]) -> list[list[tuple[str, int]]]:
    """The names with their places from the left, row by row of ``LEGEND_ROW`` pixels."""
    rows: list[list[tuple[str, int]]] = []
    left = MARGIN
    for name in names:
        width = 38 + round(font(SMALL).getlength(name)) + 34
        if not rows or left + width > WIDTH:
            rows.append([])
            left = MARGIN
        rows[-1].append((name, left))
        left += width
    return rows


def legend(draw: ImageDraw.ImageDraw, top: int, rows: Sequence[Sequence[tuple[str, int]]], colours: Mapping[str, str]):
    """Rows of :func:`legend_rows`, each name behind a square of its colour."""
    for i, row in enumerate(rows):
        for name, left in row:
            y = top + LEGEND_ROW * i
            draw.rectangle((left, y, left + 26, y + 26), colours[name])
            draw.text((left + 38, y + 13), name, INK, font(SMALL), anchor="lm")
