"""A plan, as stacked bars against the memory of the card."""

from __future__ import annotations

import math

from PIL import Image, ImageDraw

from ..memory import readable
from ..plan import Plan, Row, Turn
from .drawing import (
    BLACK,
    BLUE,
    GREEN,
    INK,
    LEGEND_ROW,
    MARGIN,
    ORANGE,
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

WEIGHTS, STATISTICS, SCRATCH, ACTIVATIONS = "weights", "statistics", "scratch", "activations"
ENCODER, VAE, FREE, TOTAL = "T5 and CLIP-L", "VAE", "can be had now", "whole memory"
COLOURS = {
    WEIGHTS: BLUE,
    STATISTICS: SKY,
    SCRATCH: VERMILION,
    ACTIVATIONS: GREEN,
    ENCODER: PURPLE,
    VAE: YELLOW,
    FREE: BLACK,
    TOTAL: ORANGE,
}
TOP, BAR, THIN, GAP, ROW = 176, 40, 14, 4, 140
ROOM, BETWEEN = WIDTH - 2 * MARGIN, 20  # of words: their room, and the gap between two
FARTHEST = 1.6  # a line at so many times the longest bar is told in words, not drawn


def plan_chart(plan: Plan) -> Image.Image:
    """An RGB picture 1024 pixels wide: for each config a bar of its sampling turn, stacked, and two thin ones of the
    text encoders' turn and of the VAE's; lines for the memory that can be had, and for all of the device."""
    rows = [row for row in plan.rows if row.usable]
    longest = max((turn.peak for row in rows for turn in (row.sampling, row.encoding, row.decoding)), default=1)
    lines = {FREE: plan.card.available, TOTAL: plan.card.total}
    drawn = {name: value for name, value in lines.items() if value <= FARTHEST * longest}
    unit, unit_name = (2**30, "GiB") if longest >= 2**30 else (2**20, "MiB")
    largest = max([longest, *drawn.values()])
    step = tick_step(largest / unit)
    steps = max(1, math.ceil(largest / unit / step))
    scale = (WIDTH - 2 * MARGIN) / (steps * step * unit)  # pixels to a byte
    names = legend_rows([name for name in COLOURS if name not in lines or name in drawn])

    axis = TOP + 10 + ROW * len(rows)
    picture = Image.new("RGB", (WIDTH, axis + 70 + LEGEND_ROW * len(names) + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(picture)
    words, tail = _title(plan)
    title, size = fitted(words, ROOM, (TITLE, TEXT), tail)
    draw.text((MARGIN, 22), title, INK, font(size))
    where, size = fitted("main memory (no GPU)" if plan.card.is_cpu else plan.card.name, ROOM, (TEXT, SMALL))
    memory = f"{readable(plan.card.available)} of {readable(plan.card.total)} can be had"
    draw.text((MARGIN, 76), where, SOFT, font(size))
    # Pillow's font has no multiplication sign
    picture_size = f"{plan.width} x {plan.height}" + (f", batch {plan.batch}" if plan.batch > 1 else "")
    draw.text((MARGIN, 118), f"{memory}; {picture_size}", SOFT, font(TEXT))
    horizontal_axis(draw, steps, step, unit_name, TOP, axis)
    for i, row in enumerate(rows):
        _draw_bars(draw, TOP + 10 + ROW * i, row, scale)
    for name, value in drawn.items():
        x = round(MARGIN + value * scale)
        draw.line((x, TOP, x, axis), COLOURS[name], 4)
    for i, row in enumerate(rows):
        _draw_label(draw, TOP + 10 + ROW * i, row, row is plan.best)
    legend(draw, axis + 66, names, COLOURS)
    return picture


def _title(plan: Plan) -> tuple[str, str]:
    """The title, and its end, which is kept where it is too long."""
    if plan.best is not None:
        return plan.best.label, " is the best that fits"
    if plan.smallest is None:
        return "No config can be used here", ""
    return f"Nothing fits whole; {plan.smallest.label}", " is nearest"


def parts(turn: Turn) -> dict[str, int]:
    """What a bar is made of: kind -> bytes."""
    return {
        WEIGHTS: turn.weights.packed + turn.weights.plain + turn.rounding,
        STATISTICS: turn.weights.statistics,
        SCRATCH: turn.scratch,
        ACTIVATIONS: turn.activations,
    }


def _draw_label(draw: ImageDraw.ImageDraw, top: int, row: Row, is_best: bool):
    offloaded = f", {readable(row.sampling.offloaded)} offloaded" if row.sampling.offloaded else ""
    numbers = readable(row.sampling.peak) + offloaded
    note = " (best)" if is_best else " (as loaded)" if row.asked else ""
    label, size = fitted(row.label, ROOM - BETWEEN - font(TEXT).getlength(numbers), (TEXT, SMALL), note)
    text(draw, (MARGIN, top), label, INK, size, "la")
    text(draw, (WIDTH - MARGIN, top), numbers, INK, TEXT, "ra")


def _draw_bars(draw: ImageDraw.ImageDraw, top: int, row: Row, scale: float):
    bar, left = top + 42, float(MARGIN)
    for name, size in parts(row.sampling).items():
        right = left + size * scale
        if round(right) > round(left):
            # a gap keeps neighbours apart whatever their colours
            draw.rectangle((round(left), bar, max(round(left), round(right) - 3), bar + BAR), COLOURS[name])
        left = right
    for i, (name, turn) in enumerate({ENCODER: row.encoding, VAE: row.decoding}.items()):
        y = bar + BAR + GAP + i * (THIN + GAP)
        draw.rectangle((MARGIN, y, max(MARGIN, round(MARGIN + turn.peak * scale) - 1), y + THIN), COLOURS[name])
