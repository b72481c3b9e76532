"""What a model's components hold, as stacked bars beside their sizes at 16 bit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .. import memory
from ..memory import GROUPS, Held, readable
from .drawing import (
    BLACK,
    BLUE,
    DARK_GREY,
    GREEN,
    INK,
    LEGEND_ROW,
    MARGIN,
    MIDDLE_GREY,
    ORANGE,
    PALE,
    PAPER,
    PURPLE,
    SKY,
    SMALL,
    SOFT,
    TEXT,
    TITLE,
    VERMILION,
    WIDTH,
    YELLOW,
    fitted,
    font,
    horizontal_axis,
    legend,
    legend_rows,
    text,
    tick_step,
)  # fmt: skip

AT_16_BIT = "at 16 bit"
COLOURS = {
    memory.PACKED: BLUE,
    memory.STATISTICS: SKY,
    memory.SKIPPED: ORANGE,
    memory.EMBEDDINGS: GREEN,
    memory.CONVOLUTIONS: VERMILION,
    memory.NORMS: PURPLE,
    memory.BIASES: YELLOW,
    memory.OTHER: MIDDLE_GREY,
    memory.LORA: BLACK,
    memory.ORIGINALS: DARK_GREY,
    AT_16_BIT: PALE,
}
TOP, BAR, SIXTEEN_BAR, ROW = 130, 44, 28, 144


def memory_chart(held: Sequence[Held]) -> Image.Image:
    """An RGB picture 1024 pixels wide: a bar per component, stacked by group, above a grey one of its size at 16 bit.

    Groups too small to be seen are left out of the legend.
    """
    by_component = {one.component: [] for one in held}
    for one in held:
        by_component[one.component].append(one)
    largest = max((max(_sizes(own)) for own in by_component.values()), default=0)
    unit, unit_name = (2**30, "GiB") if largest >= 2**30 else (2**20, "MiB")
    step = tick_step(largest / unit) if largest else 1.0
    steps = max(1, math.ceil(largest / unit / step))
    scale = (WIDTH - 2 * MARGIN) / (steps * step * unit)  # pixels to a byte
    seen = {one.group for one in held if one.nbytes * scale >= 1}
    names = legend_rows([*(group for group in GROUPS if group in seen), AT_16_BIT] if held else [])

    axis = TOP + 10 + ROW * len(by_component)
    height = axis + 70 + LEGEND_ROW * len(names) + MARGIN // 2 if held else TOP
    picture = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(picture)
    now, at_16_bit = _sizes(held)
    draw.text((MARGIN, 26), f"{readable(now)} held" if held else "No model connected", INK, font(TITLE))
    if now and at_16_bit:
        change = round(100 * (1 - now / at_16_bit))
        compared = f"{abs(change)} % {'less' if change >= 0 else 'more'} than {readable(at_16_bit)} at 16 bit"
        draw.text((MARGIN, 76), compared, SOFT, font(TEXT))
    if held:
        horizontal_axis(draw, steps, step, unit_name, TOP, axis)
    for i, (component, own) in enumerate(by_component.items()):
        _draw_component(draw, TOP + 10 + ROW * i, component, own, scale)
    legend(draw, axis + 66, names, COLOURS)
    return picture


def _sizes(held: Sequence[Held]) -> tuple[int, int]:
    """(bytes now, bytes at 16 bit)"""
    return sum(one.nbytes for one in held), sum(one.nbytes_16bit for one in held)


def _draw_component(draw: ImageDraw.ImageDraw, top: int, component: str, held: Sequence[Held], scale: float):
    now, at_16_bit = _sizes(held)
    places = " + ".join(sorted({one.place for one in held}))
    words = f"{readable(now)} on {places}".replace("on mapped", "in mapped")
    shown, size = fitted(component, WIDTH - 2 * MARGIN - 20 - font(TEXT).getlength(words), (TEXT, SMALL))
    text(draw, (MARGIN, top), shown, INK, size, "la")
    text(draw, (WIDTH - MARGIN, top), words, INK, TEXT, "ra")
    bar, left = top + 44, float(MARGIN)
    for group in GROUPS:
        right = left + scale * sum(one.nbytes for one in held if one.group == group)
        if round(right) > round(left):
            # a gap keeps neighbours apart whatever their colours
            draw.rectangle((round(left), bar, max(round(left), round(right) - 3), bar + BAR), COLOURS[group])
        left = right
    bar, right = bar + BAR + 4, round(MARGIN + at_16_bit * scale)
    draw.rectangle((MARGIN, bar, max(MARGIN, right - 1), bar + SIXTEEN_BAR), PALE)
    label, middle = readable(at_16_bit), bar + SIXTEEN_BAR / 2
    if right + 10 + font(SMALL).getlength(label) < WIDTH - MARGIN:
        text(draw, (right + 10, middle), label, SOFT, SMALL, "lm")
    else:
        draw.text((right - 10, middle), label, INK, font(SMALL), anchor="rm")
