"""A plan, as tables."""

from __future__ import annotations

from collections.abc import Sequence

from ..memory import readable
from ..plan import Plan, Row, Turn

HEADINGS = ("weights", "statistics", "scratch", "activations", "peak", "resident", "offloaded")
ASKED = " *"


def verdict(plan: Plan) -> str:
    """One sentence: the best config that fits, and what it costs; or that none does."""
    best, smallest, card = plan.best, plan.smallest, plan.card
    if best is not None:
        left = readable(card.available - best.needed)
        return f"Best that fits whole: {best.label}. It needs {readable(best.needed)} and leaves {left}."
    if smallest is None:
        lacks = " and ".join(sorted({row.lacks for row in plan.rows}))
        remedy = " Set compute_dtype to auto." if "float8" in lacks else ""
        return f"No config can be used: this device cannot multiply in {lacks}.{remedy}"
    turn = smallest.sampling
    if turn.offloaded:
        return (
            f"Nothing fits whole. {smallest.label} comes closest: {readable(turn.offloaded)} of its "
            f"{readable(turn.weights.nbytes)} of weights are offloaded to main memory and moved at every step."
        )
    return (
        f"Nothing fits: {smallest.label} needs least, {readable(smallest.needed)}, "
        f"but {readable(card.available)} can be had."
    )


def card_line(plan: Plan) -> str:
    """The device and its memory."""
    card = plan.card
    line = f"{card.name}: {readable(card.free)} free of {readable(card.total)}"
    return line + (f", and {readable(card.loaded)} held by models that can make room" if card.loaded else "")


def plan_text(plan: Plan) -> str:
    """The verdict, a table of the transformer's and of the text encoders' turn, and the VAE's."""
    pictures = f"{plan.batch} pictures" if plan.batch > 1 else "1 picture"
    lines = [
        f"{pictures} of {plan.width}×{plan.height}, {plan.tokens.image} + {plan.tokens.text} tokens a step",
        card_line(plan),
    ]
    if plan.card.is_cpu:
        lines.append("This host has no GPU: the plan is against main memory, where all models stay side by side.")
    lines += ["", verdict(plan), ""]
    transformer = [("Transformer, sampling", *HEADINGS)]
    encoders = [("T5 and CLIP-L, a prompt", *HEADINGS)]
    for row in plan.rows:
        name = row.label + (ASKED if row.asked else "")
        transformer.append(_cells(name, row.sampling, row))
        encoders.append(_cells(name, row.encoding, row))
    lines += [*_aligned(transformer), "", *_aligned(encoders), ""]
    lines.append(_decode_line(plan))
    lines += [f"{ASKED.strip()} what the loaders do, by the config or without one", ""]
    lines += [_moment_line(row) for row in plan.rows if row.usable]
    return "\n".join(lines)


def _cells(name: str, turn: Turn, row: Row) -> tuple[str, ...]:
    if not row.usable:
        return name, f"this device cannot multiply in {row.lacks}"
    parts = turn.weights.packed + turn.weights.plain + turn.rounding, turn.weights.statistics, turn.scratch
    numbers = (*parts, turn.activations, turn.peak, turn.resident, turn.offloaded)
    return name, *(readable(number) if number else "-" for number in numbers)


def _decode_line(plan: Plan) -> str:
    turn = plan.rows[0].decoding
    line = (
        f"VAE, decoding: {readable(turn.peak)}, of which {readable(turn.weights.nbytes)} of weights"
        f"{' on the CPU' if plan.card.vae_on_cpu else ''}."
    )
    if turn.peak > plan.card.available and not plan.card.is_cpu:
        line += " That is more than can be had: the host decodes in tiles."
    if plan.card.encoder_on_cpu:
        line += " The host runs text encoders on the CPU."
    return line


def _moment_line(row: Row) -> str:
    return f"{row.label}: most at {row.sampling.moment}"


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    whole = [row for row in rows if len(row) == len(HEADINGS) + 1]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for name, *cells in rows:
        if len(cells) < len(HEADINGS):
            lines.append("  ".join([f"{name:<{widths[0]}}", *cells]))
        else:
            numbers = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True)]
            lines.append("  ".join([f"{name:<{widths[0]}}", *numbers]))
    return lines
