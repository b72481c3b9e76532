"""What a model's components hold, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..memory import Held, readable

HEADINGS = ("", "now", "at 16 bit", "saved", "where")


def memory_text(held: Sequence[Held], process: Mapping[str, Mapping[str, int]]) -> str:
    """A table of components and their groups, in aligned columns, and the process's figures below it.

    Args:
        process: heading -> what -> bytes.
    """
    rows = [HEADINGS]
    for component in dict.fromkeys(one.component for one in held):
        own = [one for one in held if one.component == component]
        rows.append(_row(component, own))
        rows += [_row(f"  {one.group}", [one]) for one in own]
    rows.append(_row("total", held))
    lines = _aligned(rows)
    lines.insert(-1, "-" * max(map(len, lines)))
    for heading, figures in process.items():
        width = max(map(len, figures), default=0)
        lines += ["", heading]
        lines += [f"  {what:<{width}}  {readable(number):>11}" for what, number in figures.items()]
    return "\n".join(lines)


def _row(name: str, held: Sequence[Held]) -> tuple[str, ...]:
    now, at_16_bit = (sum(getattr(one, of) for one in held) for of in ("nbytes", "nbytes_16bit"))
    saved = at_16_bit - now
    places = " + ".join(sorted({one.place for one in held}))
    difference = readable(abs(saved))
    sign = "-" if saved < 0 and difference != readable(0) else ""
    return name, readable(now), readable(at_16_bit), sign + difference, places


def _aligned(rows: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *numbers, place in rows:
        cells = [f"{number:>{width}}" for number, width in zip(numbers, widths[1:], strict=False)]
        lines.append("  ".join([f"{name:<{widths[0]}}", *cells, place]))
    return lines
