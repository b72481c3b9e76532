"""What fits on the card, and what of the rest the host leaves in memory."""

import pytest
import torch
from planned import GIB, a_card, planned, row
from quantflux.quant_core.config import FLOAT8, QuantConfig
from quantflux.quant_core.plan.residency import resident_nbytes
from quantflux.quant_core.report.plan_chart import plan_chart
from quantflux.quant_core.report.plan_text import plan_text, verdict


@pytest.mark.parametrize(
    "free, best",
    [(40, "16-bit"), (14, "int8 threshold 6"), (8, "nf4"), (7.1, "nf4 double quant"), (6, None)],
)
def test_the_closest_to_16_bit_that_fits_is_the_best(full_size, free, best):
    found = planned(full_size, a_card(free))
    assert (found.best and found.best.label) == best
    if best:
        assert best in verdict(found)
    else:
        assert verdict(found).startswith("Nothing fits whole. nf4 double quant comes closest")
        assert found.smallest.sampling.offloaded > 0


def test_memory_of_loaded_models_can_be_had(full_size):
    assert planned(full_size, a_card(4, loaded=10 * GIB)).best.label == "int8 threshold 6"


def test_a_picture_that_is_too_large_fits_nowhere(full_size):
    found = planned(full_size, a_card(12, whole=True), size=(4096, 4096, 4))
    assert found.best is None
    assert verdict(found).startswith("Nothing fits: nf4 double quant needs least")


def test_what_the_device_cannot_multiply_is_not_proposed(full_size):
    found = planned(full_size, a_card(14, int8=False))
    assert found.best.label == "nf4"
    assert "cannot multiply in 8 bit" in plan_text(found)


def test_float8_is_not_proposed_to_a_device_that_has_none(full_size):
    config = QuantConfig("nf4", compute_dtype=FLOAT8)
    found = planned(full_size, a_card(14, float8=False), config)
    # the loader refuses it for every precision
    assert found.best is found.smallest is None
    assert verdict(found) == (
        "No config can be used: this device cannot multiply in float8. Set compute_dtype to auto."
    )
    assert plan_chart(found).size[0] == 1024
    rows = [line for line in plan_text(found).splitlines() if line.endswith("  this device cannot multiply in float8")]
    assert len(rows) == 2 * len(found.rows)
    assert planned(full_size, a_card(14), config).best.label == "int8 threshold 6"


def test_without_vram_all_weights_are_offloaded(full_size):
    found = planned(full_size, a_card(40, none=True))
    assert found.best is None and found.rows[0].sampling.resident == 0


def test_on_a_cpu_all_models_count_together(full_size):
    card = a_card(64, name="main memory", is_cpu=True, workspace=0)
    found = planned(full_size, card, dtypes=(torch.float32, torch.float32))
    nf4 = row(found, "nf4")
    beside = max(turn.scratch + turn.activations for turn in (nf4.sampling, nf4.encoding, nf4.decoding))
    turns = nf4.sampling, nf4.encoding, nf4.decoding
    assert nf4.needed == sum(turn.weights.nbytes for turn in turns) + beside
    assert nf4.sampling.rounding == 0 and nf4.sampling.is_whole
    assert "no GPU" in plan_text(found)


def test_the_host_keeps_the_largest_layers_that_leave_room_for_the_rest_to_pass():
    assert resident_nbytes([10, 5, 5], 21, 3) == 20
    # 10 with 30 for its buffers does not fit, so that 30 stay free for it
    assert resident_nbytes([10, 5, 5], 36, 3) == 20
    assert resident_nbytes([10, 5, 5, 100], 36, 3) == 0
    assert resident_nbytes([10, 5, 5], 0, 1) == 0


def test_pictures_are_decoded_together_only_where_the_host_thinks_they_fit(full_size):
    size = (1024, 1024, 8)
    few, many = (planned(full_size, a_card(free), size=size).rows[0].decoding for free in (10, 79))
    assert few.activations < many.activations == 8 * planned(full_size).rows[0].decoding.activations
