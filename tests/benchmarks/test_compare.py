"""Points, tables and charts of what was measured."""

import argparse
import json

import chart
import compare
import pytest
from comfy_host import REPOSITORY
from PIL import Image
from points import Point, add_options, options, points
from quantflux.quant_core.report.drawing import BLUE, MARGIN, ORANGE, WIDTH

OLD = REPOSITORY / "benchmarks" / "results" / "2026-11-25-h100.jsonl"


def record(variant, ratio, round_number=0, **point):
    figures = {"step_s": ratio / 4, "step_min_s": ratio / 5, "step_max_s": ratio / 2, "ratio": ratio, "rel_err": 0.25}
    more = {"peak_gib": 6.5, "load_s": 2.0, "round": round_number, "machine": "card", "date": "2026-01-01"}
    return {"variant": variant, "size": 1024, "batch": 1, "text_tokens": 256} | figures | more | point


RECORDS = [
    record("stock-bf16", 1.0),
    record("stock-bf16", 1.0, size=512),
    record("bare-nf4", 2.0),
    record("bare-nf4", 2.0, size=512),
    record("ours-nf4", 0.5),
    record("ours-nf4", 0.7, 1),
    record("ours-nf4", 0.9, 2),
    {"variant": "ours-nf4", "size": 512, "batch": 1, "text_tokens": 256, "error": "OutOfMemoryError"},
    {"variant": "gguf-q4_0", "error": "FileNotFoundError"},
]


def parsed(*words):
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(words)


def test_one_thing_is_varied_at_a_time_and_nothing_measured_twice():
    arguments = parsed("--sizes", "512,1024", "--batches", "1,4", "--text-tokens", "512")
    expected = [Point(), Point(size=512), Point(batch=4), Point(text_tokens=512)]
    assert points(arguments) == expected
    assert points(parsed(*options(arguments))) == expected
    assert points(parsed("--size", "64")) == [Point(64)]


def test_the_table_has_medians_for_each_variant_and_point():
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in compare.table(RECORDS).splitlines()]
    where = ["1024x1024, batch 1, 256 text tokens", "512x512, batch 1, 256 text tokens"]
    by_place = {tuple(row[:2]): row[2:] for row in rows[2:]}
    assert by_place["ours-nf4", where[0]] == ["0.1750", "0.700", "0.1000-0.4500", "6.50", "2.0", "0.2500"]
    assert by_place["ours-nf4", where[1]][0] == by_place["gguf-q4_0", where[0]][0] == "failed"
    assert len(rows) == 2 + 2 * 4


def test_each_time_is_compared_with_the_same_time_of_the_baseline():
    baseline = {"step_s": 0.2, "streamed_step_s": 0.4, "kernel_s": 0.5}
    own = {"step_s": 0.1, "streamed_step_s": 0.1, "first_step_s": 3.0}
    assert compare.ratios(own, baseline) == {"ratio": 0.5, "streamed_ratio": 0.25}
    assert compare.ratios(own | {"kernel_s": 0.05}, baseline)["kernel_ratio"] == 0.1
    header, _, row = compare.table([record("ours-nf4", 0.5, streamed_ratio=0.25)]).splitlines()
    cells = dict(zip(*([cell.strip() for cell in line.split("|")] for line in (header, row)), strict=True))
    assert (cells["ratio"], cells["in a row"]) == ("0.500", "0.250") and "kernels" not in cells


def test_records_from_before_there_were_points_are_read():
    records = [json.loads(line) for line in OLD.read_text().splitlines()]
    rows = compare.table(records).splitlines()[2:]
    published = OLD.with_suffix(".md").read_text().splitlines()[2:]
    assert rows == published


@pytest.fixture
def bars():
    return chart.bars(RECORDS)


def widths(picture, colour):
    """Pixels of this colour in the rows that have most of it."""
    wanted = tuple(bytes.fromhex(colour[1:]))
    pixels = picture.load()
    return max(sum(pixels[x, y] == wanted for x in range(WIDTH)) for y in range(90, picture.height - 120))


def test_bars_are_as_long_as_the_ratios(bars):
    whole = (WIDTH - 2 * MARGIN) / 2  # the axis ends at 2
    assert widths(bars, ORANGE) == pytest.approx(2.0 * whole, abs=2)
    assert widths(bars, BLUE) == pytest.approx(0.7 * whole, abs=2)


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("stock-bf16", "stock bf16"),
        ("stock-fp8fast-compile", "stock float8 fast, compiled"),
        ("gguf-q8_0", "GGUF Q8_0"),
        ("bare-nf4-dq", "bare NF4, double quantization"),
        ("ours-int8-t0-compile", "int8, threshold 0, compiled"),
        ("ours-nf4-fp8", "NF4, float8"),
    ],
)
def test_a_chart_names_variants_in_words(variant, words):
    assert chart.in_words(variant) == words


def test_lines_are_drawn_of_what_was_varied_only():
    assert chart.growth([one for one in RECORDS if one.get("size") == 1024]) is None
    grown = chart.growth(RECORDS)
    assert grown.width == WIDTH
    assert widths(grown, chart.LINES[1]) > WIDTH / 2  # bare-nf4, a level line


def test_published_results_can_be_drawn_and_others_are_told(tmp_path):
    path = tmp_path / "chart.png"
    chart.draw([OLD], path)
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="one point alone, so there are no lines"):
        chart.draw([OLD], path, lines_alone=True)
    with pytest.raises(ValueError, match="peers.jsonl: no line of stock-bf16 with a ratio"):
        chart.draw([OLD.with_name("2026-11-23-h100-peers.jsonl")], path)


def test_runs_are_drawn_together_and_lines_alone(tmp_path):
    both, growth, lines = (tmp_path / f"{name}.png" for name in ("both", "growth", "lines"))
    results = [OLD.with_name(f"2026-11-30-h200-{name}.jsonl") for name in ("own-gelu", "peers", "growth")]
    chart.draw(results[:2], both)
    chart.draw(results[2:], growth)
    chart.draw(results[2:], lines, lines_alone=True)
    written = [line for result in results[:2] for line in result.read_text().splitlines()]
    rows = len({json.loads(line)["variant"] for line in written})
    assert Image.open(both).height > chart.ROW * rows
    assert Image.open(growth).height > Image.open(lines).height + chart.ROW


def test_a_variant_is_drawn_from_the_first_run_that_has_it(tmp_path):
    first, second = (OLD.with_name(f"2026-11-30-h200-{name}.jsonl") for name in ("own-gelu", "growth"))
    chart.draw([first], tmp_path / "alone.png")
    chart.draw([first, second], tmp_path / "both.png")  # of the same variants
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "both.png").read_bytes()
