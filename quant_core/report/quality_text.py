"""A comparison of a model with its reference, as a text to read and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from ..quality import LayerError, Quality, snr_db

WORST = 10
COLUMNS = ("measure", "step", "layer", "sigma", "relative_error", "snr_db", "cosine")


def quality_text(quality: Quality) -> str:
    """The errors of each step and of the worst layers, in aligned columns."""
    lines = [
        quality.settings,
        "",
        f"velocity error, all steps  {percent(quality.velocity)}  ({_db(quality.velocity)})",
        f"drift of the final latent  {percent(quality.drift)}  ({_db(quality.drift)})",
    ]
    if quality.weight is not None:
        lines.append(f"weight error, all layers   {percent(quality.weight)}  ({_db(quality.weight)})")
    rows = [("step", "sigma", "velocity error", "SNR", "cosine", "drift after it")]
    rows += [
        (str(s.step), f"{s.sigma:.4f}", percent(s.velocity), _db(s.velocity), f"{s.cosine:.6f}", percent(s.drift))
        for s in quality.steps
    ]
    lines += ["", *_aligned(rows)]
    if worst := quality.worst(WORST):
        lines += ["", _layers_heading(quality, len(worst)), *_aligned([*_layer_rows(quality, worst)])]
    if quality.notes:
        lines += ["", *quality.notes]
    return "\n".join(lines)


def quality_csv(quality: Quality) -> str:
    """One table, a row per measured number: velocity and drift by step, weight and output by layer.

    Errors are relative ones, not per cent. ``sigma`` is the noise level at the beginning of the step.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for s in quality.steps:
        where = {"step": s.step, "sigma": s.sigma}
        table.writerow({"measure": "velocity", **where, **_error(s.velocity), "cosine": s.cosine})
        table.writerow({"measure": "drift", **where, **_error(s.drift)})
    for measure in ("weight", "output"):
        for layer in quality.layers:
            error = getattr(layer, measure)
            if error is not None:
                table.writerow({"measure": measure, "layer": layer.name, **_error(error)})
    return text.getvalue()


def percent(error: float) -> str:
    """A relative error as it is shown.

    >>> percent(0.03214), percent(0.0), percent(1.5), percent(2e9)
    ('3.21 %', '0 %', '150 %', '2.00e+11 %')
    """
    per_cent = 100 * error
    # from 99.95 on, three digits would end with their point
    return f"{per_cent:.0f} %" if error == 0 or 99.95 <= per_cent < 1e6 else f"{per_cent:#.3g} %"


def _db(error: float) -> str:
    # adding 0.0 leaves no minus before 0
    return f"{round(snr_db(error), 1) + 0.0:.1f} dB"


def _error(error: float) -> dict[str, float]:
    return {"relative_error": error, "snr_db": snr_db(error)}


def _layers_heading(quality: Quality, shown: int) -> str:
    compared = [layer for layer in quality.layers if layer.weight is not None]
    differ = sum(layer.weight != 0 for layer in compared)
    what = "outputs" if quality.has_outputs else "weights"
    return f"{len(compared)} layers' weights compared, {differ} differ. The {shown} with the worst {what}:"


def _layer_rows(quality: Quality, layers: Sequence[LayerError]) -> Iterable[tuple[str, ...]]:
    measures = ("weight", "output") if quality.has_outputs else ("weight",)
    yield "layer", *(heading for measure in measures for heading in (f"{measure} error", "SNR"))
    for layer in layers:
        errors = [getattr(layer, measure) for measure in measures]
        yield layer.name, *(cell for e in errors for cell in (("-", "-") if e is None else (percent(e), _db(e))))


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Numbers to the right, and names in the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = not rows[-1][0].isdecimal()
    return [
        "  ".join(
            f"{cell:<{w}}" if left and not i else f"{cell:>{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
