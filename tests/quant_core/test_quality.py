"""Errors of tensors, steps and layers, held to torch's own arithmetic, and how they are shown."""

import csv
import io
import math
from dataclasses import replace

import numpy
import pytest
import torch
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import dequantize, quantize
from quantflux.quant_core.quality import (
    Comparison,
    LayerError,
    Quality,
    StepError,
    Trajectory,
    cosine,
    relative_error,
    snr_db,
    step_errors,
    velocity,
    weight_errors,
)
from quantflux.quant_core.quality import errors as quality_errors
from quantflux.quant_core.quality.errors import CHUNK
from quantflux.quant_core.report import quality_chart, quality_csv, quality_text
from quantflux.quant_core.report.drawing import MARGIN, TICKS, WIDTH, tick_step
from quantflux.quant_core.report.quality_chart import COLOURS, DRIFT, OUTPUT, VELOCITY, WEIGHT
from quantflux.quant_core.report.quality_text import percent

STEPS = [StepError(1, 1.0, 0.01, 0.9999, 0.001), StepError(2, 0.5, 0.04, 0.999, 0.02)]
LAYERS = [LayerError("a.qkv", 0.09), LayerError("b.proj", 0.1), LayerError("c", 0.0)]
QUALITY = Quality("2 steps", STEPS, 0.03, LAYERS, 0.095, ["a note"])


def pair(generator, *shape, dtype=torch.float32, noise=0.1):
    a = torch.randn(shape, generator=generator)
    return a.to(dtype), (a + noise * torch.randn(shape, generator=generator)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(7,), (64, 128), (2, 3, 5, 7), (CHUNK + 11,)], ids=str)
def test_errors_are_those_of_torch_in_float64(generator, device, shape, dtype):
    a, b = (tensor.to(device) for tensor in pair(generator, *shape, dtype=dtype))
    x, y = a.cpu().double().flatten(), b.cpu().double().flatten()
    assert relative_error(a, b) == pytest.approx(((y - x).norm() / x.norm()).item(), rel=1e-9)
    assert cosine(a, b) == pytest.approx(torch.nn.functional.cosine_similarity(x, y, dim=0).item(), rel=1e-9)


@pytest.mark.parametrize("size", [1e-30, 1e30], ids=str)
def test_squares_neither_overflow_nor_vanish(generator, size):
    a, b = pair(generator, 100)
    assert relative_error(a * size, b * size) == pytest.approx(relative_error(a, b), rel=1e-5)


def test_equal_tensors_are_exactly_apart_by_nothing(generator):
    a, _ = pair(generator, 1000)
    assert relative_error(a, a.clone()) == 0.0 and cosine(a, a.clone()) == 1.0
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0.0
    assert snr_db(0.0) == math.inf


def test_what_has_no_size_or_no_number_is_not_hidden():
    zeros, ones, nan = torch.zeros(2), torch.ones(2), torch.tensor([1.0, math.nan])
    assert relative_error(zeros, ones) == math.inf and math.isnan(cosine(zeros, ones))
    assert relative_error(ones, zeros) == 1.0 and math.isnan(cosine(ones, zeros))
    for a, b in ((ones, nan), (nan, ones), (torch.tensor([1.0, math.inf]), ones)):
        assert math.isnan(relative_error(a, b)) and math.isnan(cosine(a, b))
    with pytest.raises(ValueError, match=r"\(2,\) and \(1,\)"):
        relative_error(ones, torch.ones(1))


def test_pairs_added_up_are_as_one_long_pair(generator):
    pairs = [pair(generator, n) for n in (10, 1, 500)]
    sums = Comparison()
    for a, b in pairs:
        sums.add(a, b)
    whole = [torch.cat(parts) for parts in zip(*pairs, strict=True)]
    assert sums.relative_error == pytest.approx(relative_error(*whole), rel=1e-12)
    assert sums.cosine == pytest.approx(cosine(*whole), rel=1e-12)


@pytest.mark.parametrize(("error", "db"), [(0.1, 20.0), (1.0, 0.0), (10.0, -20.0)])
def test_decibels(error, db):
    assert snr_db(error) == pytest.approx(db)


def test_the_velocity_of_a_flow_is_what_the_model_predicted(generator):
    x, v = pair(generator, 2, 4, 3, 3)
    sigma = torch.tensor([0.9, 0.3])
    denoised = x - sigma[:, None, None, None] * v
    assert relative_error(v, velocity(x, denoised, sigma)) < 1e-6


def test_steps_are_told_apart_and_together(generator):
    latents, other_latents, v, other_v = (
        [torch.randn(1, 4, generator=generator, dtype=torch.float64) for _ in range(3)] for _ in range(4)
    )
    sigmas = [torch.tensor([1.0]), torch.tensor([0.25])]
    denoised, other = ([x - s * one for x, s, one in zip(latents, sigmas, vs, strict=False)] for vs in (v, other_v))
    errors, together = step_errors(Trajectory(latents, sigmas, denoised), other, other_latents)
    assert [(e.step, e.sigma) for e in errors] == [(1, 1.0), (2, 0.25)]
    for i, e in enumerate(errors):
        assert e.velocity == pytest.approx(relative_error(v[i], other_v[i]))
        assert e.cosine == pytest.approx(cosine(v[i], other_v[i]))
        assert e.drift == relative_error(latents[i + 1], other_latents[i + 1])
    assert together == pytest.approx(relative_error(torch.cat(v[:2]), torch.cat(other_v[:2])))


@pytest.mark.parametrize(
    "config", [QuantConfig("nf4"), QuantConfig("fp4", double_quant=True), QuantConfig("int8")], ids=str
)
def test_weights_are_dequantized_and_compared_by_name(generator, device, config):
    plain = {name: torch.randn(64, 128, generator=generator, device="cpu").bfloat16() for name in "abc"}
    packed = {name: quantize(plain[name].to(device), config) for name in "ab"} | {"d": plain["c"]}
    seen = []
    errors, together = weight_errors("ab", plain, packed, device, lambda: seen.append(1))
    expected = {name: dequantize(packed[name], torch.float32).cpu() for name in "ab"}
    assert errors == {n: pytest.approx(relative_error(plain[n].float(), expected[n])) for n in "ab"}
    assert all(0.001 < error < 0.2 for error in errors.values())
    joined = [torch.cat([tensors[n].float() for n in "ab"]) for tensors in (plain, expected)]
    assert together == pytest.approx(relative_error(*joined))
    assert len(seen) == 2
    assert weight_errors(packed, packed, packed, device) == ({"a": 0.0, "b": 0.0, "d": 0.0}, 0.0)
    with pytest.raises(ValueError, match="cannot be compared"):
        weight_errors("a", plain, {"a": torch.zeros(2, 2)})


def test_comparing_a_large_weight_can_be_stopped_within_it(generator, monkeypatch):
    monkeypatch.setattr(quality_errors, "CHUNK", 1000)
    weight, pauses = torch.randn(10, 500, generator=generator), []

    def pause():
        pauses.append(1)
        if len(pauses) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        weight_errors("a", {"a": weight}, {"a": weight + 1}, pause=pause)
    assert len(pauses) == 3


def test_the_worst_layers_come_first_and_those_that_are_no_number_before_all():
    layers = [*LAYERS, LayerError("nan", math.nan), LayerError("uncompared")]
    quality = replace(QUALITY, layers=layers)
    assert [layer.name for layer in quality.worst(10)] == ["nan", "b.proj", "a.qkv", "c"]
    quality = replace(QUALITY, layers=[LayerError("a", 0.5, 0.1), LayerError("b", 0.1, 0.5), LayerError("c", 0.9)])
    assert [layer.name for layer in quality.worst(1)] == ["b"]


def test_the_text_tells_steps_layers_and_notes():
    lines = quality_text(QUALITY).splitlines()
    assert lines[0] == "2 steps" and lines[-1] == "a note"
    assert lines[2].split("  ")[1:] == ["3.00 %", "(30.5 dB)"]
    assert [line.split() for line in lines if line.startswith("   2 ")] == [
        ["2", "0.5000", "4.00", "%", "28.0", "dB", "0.999000", "2.00", "%"]
    ]
    assert "3 layers' weights compared, 2 differ. The 3 with the worst weights:" in lines
    rows = [line for line in lines if line.startswith(("layer", "b.proj"))]
    assert [row.split() for row in rows] == [["layer", "weight", "error", "SNR"], ["b.proj", "10.0", "%", "20.0", "dB"]]
    assert len({len(row) for row in rows}) == 1


def test_the_csv_has_every_number_once():
    layers = [LayerError("a, b", 0.1, 0.2), LayerError("c", 0.3)]
    rows = list(csv.DictReader(io.StringIO(quality_csv(replace(QUALITY, layers=layers)))))
    found = {(row["measure"], row["step"] or row["layer"]): float(row["relative_error"]) for row in rows}
    assert len(found) == len(rows)
    assert found == {
        ("velocity", "1"): 0.01, ("velocity", "2"): 0.04, ("drift", "1"): 0.001, ("drift", "2"): 0.02,
        ("weight", "a, b"): 0.1, ("weight", "c"): 0.3, ("output", "a, b"): 0.2,
    }  # fmt: skip
    assert float(rows[0]["cosine"]) == 0.9999 and float(rows[0]["sigma"]) == 1.0
    assert all(float(row["snr_db"]) == pytest.approx(snr_db(float(row["relative_error"]))) for row in rows)


def columns_of(picture, colour: str, box) -> int:
    """How many columns of the box have a pixel of this colour."""
    pixels = numpy.asarray(picture.crop(box))
    return int((pixels == tuple(bytes.fromhex(colour[1:]))).all(axis=2).any(axis=0).sum())


def test_bars_are_as_long_as_the_errors():
    picture = quality_chart(replace(QUALITY, layers=[LayerError("a", 0.04, 0.02), LayerError("b", 0.01, 0.01)]))
    assert picture.mode == "RGB" and picture.width == WIDTH
    # below the legends
    box = (0, picture.height - 250, WIDTH, picture.height)
    weight, output = columns_of(picture, COLOURS[WEIGHT], box), columns_of(picture, COLOURS[OUTPUT], box)
    assert weight / output == pytest.approx(2, rel=0.02)
    assert weight == pytest.approx(WIDTH - 80 - 130, abs=2)


def test_a_chart_without_layers_has_no_bars():
    picture = quality_chart(replace(QUALITY, layers=(), weight=None))
    assert picture.height < quality_chart(QUALITY).height
    box = (0, 0, WIDTH, picture.height)
    assert columns_of(picture, COLOURS[VELOCITY], box) > 700 < columns_of(picture, COLOURS[DRIFT], box)
    assert not columns_of(picture, COLOURS[WEIGHT], box)


@pytest.mark.parametrize("error", [0.0, 1e-18, 1e-9, 5.0, 1e18, math.inf, math.nan], ids=str)
@pytest.mark.parametrize("count", [1, 2, 100])
def test_every_error_can_be_drawn_and_told(error, count):
    steps = [StepError(i + 1, 1.0, error, error, error) for i in range(count)]
    quality = Quality("settings", steps, error, [LayerError("x" * 200, error), LayerError("y", 0.1)], error)
    assert quality_chart(quality).width == WIDTH
    assert "settings" in quality_text(quality) and "velocity" in quality_csv(quality)


@pytest.mark.parametrize("largest", [1e-200, 3e-14, 0.7, 22.2, 9e99], ids=str)
def test_there_are_a_few_ticks_whatever_the_size(largest):
    assert TICKS / 2.5 <= largest / tick_step(largest) <= TICKS


@pytest.mark.parametrize(
    ("error", "shown"),
    [(0.9994, "99.9 %"), (0.9996, "100 %"), (1.0, "100 %"), (5000.0, "500000 %"), (1.234e12, "1.23e+14 %")],
)
def test_large_errors_are_told_shortly(error, shown):
    assert percent(error) == shown


def test_an_error_as_large_as_the_reference_is_0_db_without_a_sign():
    text = quality_text(replace(QUALITY, velocity=1.0, steps=[StepError(1, 1.0, 1.002, 0.0, 0.998)]))
    assert "(0.0 dB)" in text and "-0.0" not in text


def test_numbers_in_the_chart_end_within_it():
    steps = [StepError(1, 1.0, 1e305, 0.0, 1e305)]
    layers = [LayerError("double_blocks.0.img_attn.qkv", 1e305)]
    pixels = numpy.asarray(quality_chart(Quality("settings", steps, 1e305, layers, 1e305)))
    assert (pixels[:100, -MARGIN:] == 255).all() and (pixels[:, -8:] == 255).all()
