"""The plan as text and as picture."""

import re
from operator import attrgetter

import pytest
from planned import GIB, a_card, planned
from quantflux.quant_core.memory import readable
from quantflux.quant_core.report.drawing import WIDTH
from quantflux.quant_core.report.plan_chart import COLOURS, FREE, TOTAL, parts, plan_chart
from quantflux.quant_core.report.plan_text import plan_text


def colours(picture) -> set[str]:
    return {"#{:02X}{:02X}{:02X}".format(*colour) for _, colour in picture.getcolors(2**20)}


def test_the_chart_has_each_part_and_the_lines_of_the_card(full_size):
    found = planned(full_size, a_card(11, total=12 * GIB))
    picture = plan_chart(found)
    assert picture.width == WIDTH
    assert colours(picture) >= set(COLOURS.values())


def test_lines_far_beyond_the_bars_are_left_out(full_size):
    found = planned(full_size, a_card(78, total=80 * GIB))
    assert not {COLOURS[TOTAL], COLOURS[FREE]} & colours(plan_chart(found))


def test_bars_are_as_long_as_the_bytes(full_size):
    found = planned(full_size, a_card(11, total=12 * GIB))
    for one in found.rows:
        assert sum(parts(one.sampling).values()) == one.sampling.peak
    blue = tuple(bytes.fromhex(COLOURS["weights"][1:]))
    picture = plan_chart(found).load()
    widths = []
    for i in range(len(found.rows)):
        y = 176 + 10 + 140 * i + 42 + 20
        widths.append(sum(picture[x, y] == blue for x in range(WIDTH)))
    sizes = [parts(one.sampling)["weights"] for one in found.rows]
    # 944 pixels are 25 GiB; up to two lines of the card cross
    assert widths == pytest.approx([size / GIB * 944 / 25 for size in sizes], abs=14)


def test_the_text_has_every_figure_in_columns(full_size):
    found = planned(full_size, a_card(5.4, total=6 * GIB))
    text = plan_text(found)
    assert "1 picture of 1024×1024, 4096 + 256 tokens a step" in text
    assert "5.40 GiB free of 6.00 GiB" in text
    assert "moved at every step" in text
    tables = text.split("\n\n")[2:4]
    for table, turn_of in zip(tables, (attrgetter("sampling"), attrgetter("encoding")), strict=True):
        lines = table.splitlines()
        assert len({len(line) for line in lines}) == 1 and len(lines) == 6
        for line, one in zip(lines[1:], found.rows, strict=True):
            turn = turn_of(one)
            numbers = *parts(turn).values(), turn.peak, turn.resident, turn.offloaded
            label = one.label + (" *" if one.asked else "")
            assert re.split(" {2,}", line) == [label, *(readable(number) if number else "-" for number in numbers)]


def test_a_decode_that_does_not_fit_is_said_to_go_in_tiles(full_size):
    text = plan_text(planned(full_size, a_card(5.4), size=(2048, 2048, 1)))
    assert "decodes in tiles" in text
