"""What a model's components hold, as stacked bars beside their sizes at 16 bit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from .. import memory
from ..memory import GROUPS, Held, readable

# Okabe and Ito, Color Universal Design, https://jfly.uni-koeln.de/color/: told apart without red or green
COLOURS = {
    memory.PACKED: "#0072B2",
    memory.STATISTICS: "#56B4E9",
    memory.SKIPPED: "#E69F00",
    memory.EMBEDDINGS: "#009E73",
    memory.CONVOLUTIONS: "#D55E00",
    memory.NORMS: "#CC79A7",
    memory.BIASES: "#F0E442",
    memory.OTHER: "#999999",
    memory.LORA: "#000000",
    memory.ORIGINALS: "#666666",
}
AT_16_BIT = "at 16 bit"
PAPER, INK, SOFT, GRID, SIXTEEN = "#FFFFFF", "#1A1A1A", "#5A5A5A", "#DDDDDD", "#C4C4C4"
# twice what a canvas shows at 512 pixels: the smallest letters are 13 pixels high there
WIDTH, MARGIN = 1024, 40
TITLE, TEXT, SMALL = 38, 30, 26
TOP, BAR, SIXTEEN_BAR, ROW, LEGEND_ROW = 130, 44, 28, 144, 44
TICKS = 6  # at most


def memory_chart(held: Sequence[Held]) -> Image.Image:
    """An RGB picture 1024 pixels wide: a bar per component, stacked by group, above a grey one of its size at 16 bit.

    Groups too small to be seen are left out of the legend.
    """
    by_component = {one.component: [] for one in held}
    for one in held:
        by_component[one.component].append(one)
    largest = max((max(_sizes(own)) for own in by_component.values()), default=0)
    unit, unit_name = (2**30, "GiB") if largest >= 2**30 else (2**20, "MiB")
    step = _step(largest / unit) if largest else 1.0
    steps = max(1, math.ceil(largest / unit / step))
    scale = (WIDTH - 2 * MARGIN) / (steps * step * unit)  # pixels to a byte
    seen = {one.group for one in held if one.nbytes * scale >= 1}
    legend = _legend_rows([*(group for group in GROUPS if group in seen), AT_16_BIT] if held else [])

    axis = TOP + 10 + ROW * len(by_component)
    height = axis + 70 + LEGEND_ROW * len(legend) + MARGIN // 2 if held else TOP
    picture = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(picture)
    now, at_16_bit = _sizes(held)
    draw.text((MARGIN, 26), f"{readable(now)} held" if held else "No model connected", INK, _font(TITLE))
    if now and at_16_bit:
        change = round(100 * (1 - now / at_16_bit))
        compared = f"{abs(change)} % {'less' if change >= 0 else 'more'} than {readable(at_16_bit)} at 16 bit"
        draw.text((MARGIN, 76), compared, SOFT, _font(TEXT))
    if held:
        _draw_axis(draw, steps, step, unit_name, axis)
    for i, (component, own) in enumerate(by_component.items()):
        _draw_component(draw, TOP + 10 + ROW * i, component, own, scale)
    _draw_legend(draw, axis + 66, legend)
    return picture


def _sizes(held: Sequence[Held]) -> tuple[int, int]:
    """(bytes now, bytes at 16 bit)"""
    return sum(one.nbytes for one in held), sum(one.nbytes_16bit for one in held)


def _draw_component(draw: ImageDraw.ImageDraw, top: int, component: str, held: Sequence[Held], scale: float):
    now, at_16_bit = _sizes(held)
    places = " + ".join(sorted({one.place for one in held}))
    words = f"{readable(now)} on {places}".replace("on mapped", "in mapped")
    _text(draw, (MARGIN, top), component, INK, TEXT, "la")
    _text(draw, (WIDTH - MARGIN, top), words, INK, TEXT, "ra")
    bar, left = top + 44, float(MARGIN)
    for group in GROUPS:
        right = left + scale * sum(one.nbytes for one in held if one.group == group)
        if round(right) > round(left):
            # a gap keeps neighbours apart whatever their colours
            draw.rectangle((round(left), bar, max(round(left), round(right) - 3), bar + BAR), COLOURS[group])
        left = right
    bar, right = bar + BAR + 4, round(MARGIN + at_16_bit * scale)
    draw.rectangle((MARGIN, bar, max(MARGIN, right - 1), bar + SIXTEEN_BAR), SIXTEEN)
    label, middle = readable(at_16_bit), bar + SIXTEEN_BAR / 2
    if right + 10 + _font(SMALL).getlength(label) < WIDTH - MARGIN:
        _text(draw, (right + 10, middle), label, SOFT, SMALL, "lm")
    else:
        draw.text((right - 10, middle), label, INK, _font(SMALL), anchor="rm")


def _draw_axis(draw: ImageDraw.ImageDraw, steps: int, step: float, unit: str, bottom: int):
    for i in range(steps + 1):
        x = MARGIN + i * (WIDTH - 2 * MARGIN) / steps
        draw.line((x, TOP, x, bottom), GRID, 2)
        label = f"{i * step:g}" + (f" {unit}" if i == steps else "")
        anchor = "la" if i == 0 else "ra" if i == steps else "ma"
        draw.text((x, bottom + 10), label, SOFT, _font(SMALL), anchor=anchor)


def _step(largest: float) -> float:
    """The distance of ticks: 1, 2 or 5 times a power of ten, so that there are few.

    >>> _step(22.2), _step(0.7)
    (5.0, 0.2)
    """
    power = 10.0 ** math.floor(math.log10(largest / TICKS))
    return next(round(power * m, 12) for m in (1, 2, 5, 10) if largest / (power * m) <= TICKS)


def _legend_rows(names: Sequence[str]) -> list[list[tuple[str, int]]]:
    """The names with their places from the left, row by row."""
    rows: list[list[tuple[str, int]]] = []
    left = MARGIN
    for name in names:
        width = 38 + round(_font(SMALL).getlength(name)) + 34
        if not rows or left + width > WIDTH:
            rows.append([])
            left = MARGIN
        rows[-1].append((name, left))
        left += width
    return rows


def _draw_legend(draw: ImageDraw.ImageDraw, top: int, rows: Sequence[Sequence[tuple[str, int]]]):
    for i, row in enumerate(rows):
        for name, left in row:
            y = top + LEGEND_ROW * i
            draw.rectangle((left, y, left + 26, y + 26), COLOURS.get(name, SIXTEEN))
            draw.text((left + 38, y + 13), name, INK, _font(SMALL), anchor="lm")


def _text(draw: ImageDraw.ImageDraw, at: tuple[float, float], words: str, ink: str, size: int, anchor: str):
    """Words on top of grid lines."""
    draw.text(at, words, ink, _font(size), anchor, stroke_width=6, stroke_fill=PAPER)
    draw.text(at, words, ink, _font(size), anchor)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
