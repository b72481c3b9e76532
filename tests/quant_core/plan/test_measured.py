"""The plan of a run against what was measured on a GPU."""

import json
from pathlib import Path

import pytest
import torch
from planned import GIB, MIB, a_card, planned, row
from quantflux.quant_core.config import FLOAT8, QuantConfig
from quantflux.quant_core.layouts import quantize
from quantflux.quant_core.linear import linear
from quantflux.quant_core.plan.scratch import four_bit_scratch

RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def recorded(name: str) -> list[dict]:
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


MEASURED = {
    "stock-bf16": QuantConfig("none"),
    "bare-nf4": QuantConfig("nf4"),
    "ours-nf4": QuantConfig("nf4"),
    "ours-nf4-dq": QuantConfig("nf4", double_quant=True),
    "ours-int8-t0": QuantConfig("int8", int8_threshold=0.0),
    "ours-int8-t6": QuantConfig("int8", int8_threshold=6.0),
}


@pytest.mark.parametrize("variant", MEASURED)
def test_the_peak_of_sampling_is_the_measured_one_within_5_percent(full_size, variant):
    config = MEASURED[variant]
    predicted = row(planned(full_size, config=config), config.describe()).sampling.peak
    peaks = [record["peak_gib"] for record in recorded("2026-11-25-h100.jsonl") if record["variant"] == variant]
    assert peaks
    assert all(predicted / GIB == pytest.approx(peak, rel=0.05) for peak in peaks)


@pytest.mark.parametrize(
    "variant, config",
    [
        ("ours-nf4", QuantConfig("nf4")),
        ("ours-nf4-fp8", QuantConfig("nf4", compute_dtype=FLOAT8)),
        ("ours-int8-t0", QuantConfig("int8", int8_threshold=0.0)),
        ("ours-int8-t6", QuantConfig("int8")),
    ],
)
def test_the_peak_with_our_kernels_is_the_measured_one_within_half_a_percent(full_size, variant, config):
    predicted = row(planned(full_size, a_card(138, fused=True), config), config.describe()).sampling.peak
    (record,) = (r for r in recorded("2026-11-29-h200-own-kernels.jsonl") if r["variant"] == variant)
    assert predicted / GIB == pytest.approx(record["peak_gib"], rel=0.005)


def test_what_lives_beside_the_weights_is_the_measured_one_within_5_percent(full_size):
    """Weights hide much: those of stock bf16 are known to the byte, and are not rounded up."""
    record = recorded("2026-11-25-h100.jsonl")[0]
    assert record["variant"] == "stock-bf16"
    turn = row(planned(full_size), "16-bit").sampling
    assert turn.weights.nbytes / GIB == pytest.approx(record["model_gib"], rel=1e-4)
    beside = record["peak_gib"] - record["model_gib"]
    assert (turn.peak - turn.weights.nbytes) / GIB == pytest.approx(beside, rel=0.05)


def test_the_peak_of_encoding_is_the_measured_one_within_5_percent(full_size):
    whole = recorded("2026-11-25-h100-low-vram.jsonl")[0]
    predicted = row(planned(full_size), "nf4").encoding.peak
    assert predicted / GIB == pytest.approx(whole["text_peak_gib"], rel=0.05)


@pytest.mark.parametrize("record", recorded("2026-11-25-h100-low-vram.jsonl"), ids=lambda record: record["cap_gib"])
def test_as_much_is_resident_as_the_host_kept_on_the_card(full_size, record):
    card = a_card(record["free_at_start_gib"], first_use=390 * MIB)
    turn = row(planned(full_size, card), "nf4").sampling
    assert turn.resident / GIB == pytest.approx(record["resident_gib"], abs=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize(
    "config", [QuantConfig("nf4"), QuantConfig("nf4", double_quant=True)], ids=QuantConfig.describe
)
def test_scratch_is_what_a_product_allocates(config):
    x, weight = torch.randn(4352, 3072, device="cuda").bfloat16(), torch.randn(12288, 3072, device="cuda").bfloat16()
    packed = quantize(weight, config)
    linear(x, packed)  # cuBLAS's workspace
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    y = linear(x, packed)
    scratch = torch.cuda.max_memory_allocated() - before - y.nbytes
    expected = four_bit_scratch(tuple(weight.shape), config.blocksize, config.double_quant, torch.bfloat16)
    assert scratch == pytest.approx(expected, rel=0.1)
