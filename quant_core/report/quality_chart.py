"""A comparison of a model with its reference, drawn: errors by step as lines, the worst layers as bars."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..quality import LayerError, Quality
from .drawing import (
    BLUE,
    GREEN,
    GRID,
    INK,
    LEGEND_ROW,
    MARGIN,
    ORANGE,
    PAPER,
    SMALL,
    SOFT,
    TEXT,
    TITLE,
    VERMILION,
    WIDTH,
    fitted,
    font,
    legend,
    legend_rows,
    text,
    tick_step,
)  # fmt: skip
from .quality_text import percent

VELOCITY, DRIFT = "velocity error at the reference's latent", "drift of the latent"
WEIGHT, OUTPUT = "weight error", "output error on the reference's inputs"
COLOURS = {VELOCITY: BLUE, DRIFT: VERMILION, WEIGHT: ORANGE, OUTPUT: GREEN}
WORST = 8  # layers
LEFT, TOP, PLOT = 150, 236, 330  # of the lines: left and upper end, height
LABELS = 10  # at most, below the lines
BAR, NAME = 26, 36


def quality_chart(quality: Quality) -> Image.Image:
    """An RGB picture 1024 pixels wide. Errors that are not finite are left out of lines and bars."""
    layers, measures = quality.worst(WORST), _measures(quality)
    row = NAME + len(measures) * (BAR + 4) + 14
    bars = TOP + PLOT + 110
    height = bars + (44 + LEGEND_ROW + row * len(layers) + MARGIN if layers else -10)
    picture = Image.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 26), f"Velocity error {percent(quality.velocity)}", INK, font(TITLE))
    words = f"all {len(quality.steps)} steps · final latent drifts by {percent(quality.drift)}"
    if quality.weight is not None:
        words += f" · weights {percent(quality.weight)}"
    words, size = fitted(words, WIDTH - 2 * MARGIN, (TEXT, SMALL))
    draw.text((MARGIN, 78), words, SOFT, font(size))
    legend(draw, 128, legend_rows([VELOCITY, DRIFT]), COLOURS)
    _draw_steps(draw, quality)
    if layers:
        heading = f"The {len(layers)} worst layers" if len(layers) > 1 else "The worst layer"
        draw.text((MARGIN, bars), heading, INK, font(TEXT))
        legend(draw, bars + 48, legend_rows(measures), COLOURS)
        _draw_layers(draw, bars + 54 + LEGEND_ROW, layers, measures, row)
    return picture


def _measures(quality: Quality) -> dict[str, str]:
    """What the bars show -> the attribute of a layer."""
    return {WEIGHT: "weight"} | ({OUTPUT: "output"} if quality.has_outputs else {})


def _draw_steps(draw: ImageDraw.ImageDraw, quality: Quality):
    lines = {VELOCITY: [s.velocity for s in quality.steps], DRIFT: [s.drift for s in quality.steps]}
    largest = 100 * max((e for errors in lines.values() for e in errors if math.isfinite(e)), default=0.0)
    step = tick_step(largest) if largest else 1.0
    ticks = max(1, math.ceil(round(largest / step, 9)))
    bottom, right = TOP + PLOT, WIDTH - MARGIN
    scale = PLOT / (ticks * step)  # pixels to a per cent

    draw.text((MARGIN, TOP - 56), "relative error, %", SOFT, font(SMALL))
    for i in range(ticks + 1):
        y = bottom - i * step * scale
        draw.line((LEFT, y, right, y), GRID, 2)
        draw.text((LEFT - 14, y), f"{i * step:g}", SOFT, font(SMALL), anchor="rm")
    count = len(quality.steps)

    def across(i: int) -> float:
        return LEFT + 20 + i * (right - LEFT - 40) / max(1, count - 1)

    every = math.ceil(count / LABELS)
    for i in (0, *range(every - 1, count, every)):
        draw.text((across(i), bottom + 12), str(i + 1), SOFT, font(SMALL), anchor="ma")
    draw.text((right, bottom + 46), "step", SOFT, font(SMALL), anchor="ra")
    for name, errors in lines.items():
        points = [(across(i), bottom - 100 * e * scale if math.isfinite(e) else None) for i, e in enumerate(errors)]
        for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
            if y0 is not None and y1 is not None:
                draw.line((x0, y0, x1, y1), COLOURS[name], 5)
        # told apart without colours too: circles and squares
        mark = draw.ellipse if name == VELOCITY else draw.rectangle
        for x, y in points:
            if y is not None:
                mark((x - 8, y - 8, x + 8, y + 8), COLOURS[name])


def _draw_layers(draw: ImageDraw.ImageDraw, top: int, layers: Sequence[LayerError], measures: dict[str, str], row: int):
    errors = [getattr(layer, measure) for layer in layers for measure in measures.values()]
    largest = max((e for e in errors if e is not None and math.isfinite(e)), default=0.0)
    room = WIDTH - 2 * MARGIN - 130  # right of it the number
    for i, layer in enumerate(layers):
        y = top + row * i
        text(draw, (MARGIN, y), _shortened(layer.name), INK, SMALL)
        y += NAME
        for name, measure in measures.items():
            error = getattr(layer, measure)
            finite = error is not None and math.isfinite(error)
            end = MARGIN + (round(room * error / largest) if finite and largest else 0)
            draw.rectangle((MARGIN, y, end, y + BAR), COLOURS[name])
            label = "not compared" if error is None else percent(error)
            draw.text((end + 12, y + BAR / 2), label, SOFT, font(SMALL), anchor="lm")
            y += BAR + 4


def _shortened(name: str) -> str:
    """The name, without its beginning where it is too long for the chart."""
    shown = name
    while font(SMALL).getlength(shown) > WIDTH - 2 * MARGIN:
        shown = "…" + shown.lstrip("…")[1:]
    return shown
