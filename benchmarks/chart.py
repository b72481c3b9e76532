"""Draws what compare.py measured: ratios to stock bf16 as bars, and how a step grows, if it was measured, as lines.

python benchmarks/chart.py results.jsonl docs/speed.png
python benchmarks/chart.py --lines growth.jsonl docs/growth.png
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence

from measure import BASELINE
from PIL import Image, ImageDraw
from points import Point
from quantflux.quant_core.report.drawing import (
    BLUE,
    DARK_GREY,
    GREEN,
    GRID,
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
    font,
    horizontal_axis,
    legend,
    legend_rows,
    text,
    tick_step,
)  # fmt: skip

STOCK, PEERS, OURS = "ComfyUI's own", "others", "QuantFlux"
COLOURS = {STOCK: DARK_GREY, PEERS: ORANGE, OURS: BLUE}
KINDS = {"stock": STOCK, "ours": OURS}
MAKERS = {"ours": "", "gguf": "GGUF "}  # others are called as they are
WORDS = {
    "nf4": "NF4", "fp4": "FP4", "dq": "double quantization", "fp8": "float8", "fp8fast": "float8 fast",
    "t0": "threshold 0", "t6": "threshold 6", "q8_0": "Q8_0", "q4_0": "Q4_0", "compile": "compiled",
}  # fmt: skip
TOP, BAR, ROW = 134, 28, 84
SIDE, HEIGHT = 110, 420  # of a chart of lines: room for its figures, and its height
LINES = (BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE, DARK_GREY)
AXES = {"size": "pixels of a side", "batch": "pictures at once", "text_tokens": "text tokens"}


def medians(records: Sequence[dict]) -> dict[str, dict[Point, dict[str, float]]]:
    """variant -> point -> median over the rounds of each figure; what failed is left out."""
    keys = "step_s", "ratio", "peak_gib", "rel_err"
    found: dict[str, dict[Point, list[dict]]] = {}
    for record in records:
        if "ratio" in record:
            found.setdefault(record["variant"], {}).setdefault(Point.of(record), []).append(record)
    return {
        variant: {
            point: {k: statistics.median(r[k] for r in rows) for k in keys if all(r.get(k) is not None for r in rows)}
            for point, rows in by_point.items()
        }
        for variant, by_point in found.items()
    }


def bars(records: Sequence[dict]) -> Image.Image:
    """The ratios at the first point, the fastest first, with peak memory and error."""
    found = medians(records)
    point = next(iter(found[BASELINE]))
    rows = sorted(((v, by[point]) for v, by in found.items() if point in by), key=lambda row: row[1]["ratio"])
    largest = max(figures["ratio"] for _, figures in rows)
    step = tick_step(largest)
    steps = math.ceil(largest / step)
    scale = (WIDTH - 2 * MARGIN) / (steps * step)
    names = legend_rows([name for name in COLOURS if any(kind(variant) == name for variant, _ in rows)])
    axis = TOP + 8 + ROW * len(rows)
    picture = Image.new("RGB", (WIDTH, axis + 70 + LEGEND_ROW * len(names) + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 22), "Time of a step, against bf16 uncompiled", INK, font(TITLE))
    draw.text(
        (MARGIN, 76), f"{point.size} x {point.size}, {records[0]['machine']}, {records[0]['date']}", SOFT, font(TEXT)
    )
    horizontal_axis(draw, steps, step, "", TOP, axis)
    draw.line((MARGIN + scale, TOP, MARGIN + scale, axis), INK, 3)
    for i, (variant, figures) in enumerate(rows):
        y = TOP + 12 + ROW * i
        text(draw, (MARGIN, y), in_words(variant), INK, TEXT, "la")
        notes = [f"{figures['ratio']:.2f}", f"{figures['peak_gib']:.1f} GiB"]
        if variant != BASELINE and "rel_err" in figures:
            notes.append(f"error {figures['rel_err']:.3f}")
        text(draw, (WIDTH - MARGIN, y), ", ".join(notes), INK, TEXT, "ra")
        right = round(MARGIN + figures["ratio"] * scale)
        draw.rectangle((MARGIN, y + 38, right, y + 38 + BAR), COLOURS[kind(variant)])
    legend(draw, axis + 60, names, COLOURS)
    return picture


def kind(variant: str) -> str:
    return KINDS.get(variant.split("-")[0], PEERS)


def in_words(variant: str) -> str:
    """A variant's name in words.

    >>> in_words("ours-nf4-fp8-compile"), in_words("stock-bf16")
    ('NF4, float8, compiled', 'stock bf16')
    """
    maker, *words = variant.split("-")
    return MAKERS.get(maker, f"{maker} ") + ", ".join(WORDS.get(word, word) for word in words)


def growth(records: Sequence[dict]) -> Image.Image | None:
    """Seconds of a step against each thing that was varied, one chart above the other; None if nothing was."""
    found = medians(records)
    first = next(iter(found[BASELINE]))
    varied = {
        axis: {
            in_words(variant): line
            for variant, by_point in found.items()
            if len(
                line := sorted((getattr(p, axis), f["step_s"]) for p, f in by_point.items() if alike(p, first, axis))
            )
            > 1
        }
        for axis in AXES
    }
    varied = {axis: lines for axis, lines in varied.items() if lines}
    if not varied:
        return None
    variants = list(dict.fromkeys(variant for lines in varied.values() for variant in lines))
    colours = {variant: LINES[i % len(LINES)] for i, variant in enumerate(variants)}
    names = legend_rows(variants)
    below = 90 + (HEIGHT + 130) * len(varied)
    picture = Image.new("RGB", (WIDTH, below + LEGEND_ROW * len(names) + MARGIN // 2), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 22), f"Seconds a step takes, {records[0]['machine']}", INK, font(TITLE))
    for i, (axis, lines) in enumerate(varied.items()):
        top = 100 + (HEIGHT + 130) * i
        _draw_lines(draw, top, AXES[axis], {variant: (colours[variant], line) for variant, line in lines.items()})
    legend(draw, below, names, colours)
    return picture


def alike(point: Point, first: Point, axis: str) -> bool:
    """Whether they differ in nothing but one thing."""
    return all(getattr(point, other) == getattr(first, other) for other in AXES if other != axis)


def _draw_lines(draw: ImageDraw.ImageDraw, top: int, label: str, lines: dict[str, tuple[str, list]]):
    bottom, right = top + HEIGHT, WIDTH - MARGIN - 20
    places = sorted({x for _, line in lines.values() for x, _ in line})
    largest = max(y for _, line in lines.values() for _, y in line)
    step = tick_step(largest)
    steps = math.ceil(largest / step)

    def at(value: float) -> float:
        return SIDE + (right - SIDE) * (value - places[0]) / (places[-1] - places[0])

    def height(seconds: float) -> float:
        return bottom - HEIGHT * seconds / (steps * step)

    for i in range(steps + 1):
        y = height(i * step)
        draw.line((SIDE, y, right, y), GRID, 2)
        draw.text((SIDE - 14, y), f"{i * step:g}", SOFT, font(SMALL), anchor="rm")
    for x in places:
        draw.text((at(x), bottom + 12), str(x), SOFT, font(SMALL), anchor="ma")
    draw.text(((SIDE + right) / 2, bottom + 48), label, INK, font(SMALL), anchor="ma")
    marks: tuple[Callable, ...] = (draw.ellipse, draw.rectangle)
    for i, (colour, line) in enumerate(lines.values()):
        path = [(at(x), height(y)) for x, y in line]
        draw.line(path, colour, 5)
        for x, y in path:
            marks[i % 2]((x - 9, y - 9, x + 9, y + 9), fill=colour, outline=PAPER)


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    whole = Image.new("RGB", (WIDTH, sum(one.height for one in pictures)), PAPER)
    top = 0
    for one in pictures:
        whole.paste(one, (0, top))
        top += one.height
    return whole


def draw(results: Sequence[str], picture: str, lines_alone: bool = False):
    """Read JSON lines of one or more runs of ``compare.py`` and save a PNG.

    A variant is drawn from the first of them that has it.

    Raises:
        ValueError: no line has a ratio of stock bf16; or ``lines_alone``, and nothing was varied.
    """
    records, names = [], ", ".join(map(str, results))
    for path in results:
        known = {record["variant"] for record in records}
        with open(path) as file:
            records += [record for record in map(json.loads, file) if record["variant"] not in known]
    if BASELINE not in medians(records):
        raise ValueError(f"{names}: no line of {BASELINE} with a ratio. Only what compare.py writes can be drawn.")
    pictures = [] if lines_alone else [bars(records)]
    if grown := growth(records):
        pictures.append(grown)
    if not pictures:
        raise ValueError(f"{names}: one point alone, so there are no lines to draw.")
    stacked(pictures).save(picture, optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "results", nargs="+", help="JSON lines of compare.py; of several runs, each variant from the first that has it"
    )
    parser.add_argument("picture")
    parser.add_argument("--lines", action="store_true", help="how a step grows alone")
    arguments = parser.parse_args()
    draw(arguments.results, arguments.picture, arguments.lines)


if __name__ == "__main__":
    main()
