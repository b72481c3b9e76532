"""The plan of a run: against what was measured on a GPU, against the files, and as text and picture."""

import dataclasses
import json
import math
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from format_files import write_sparse
from quantflux.quant_core.checkpoint import Checkpoint, Reader, open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.flux.config import FluxConfig
from quantflux.quant_core.layouts import nbytes, quantize
from quantflux.quant_core.linear import linear
from quantflux.quant_core.memory import planned_nbytes
from quantflux.quant_core.plan import Card, plan, variants
from quantflux.quant_core.plan import weights as plan_weights
from quantflux.quant_core.plan.activations import Tokens
from quantflux.quant_core.plan.residency import resident_nbytes
from quantflux.quant_core.plan.scratch import four_bit_scratch, int8_scratch
from quantflux.quant_core.quantize import load
from quantflux.quant_core.report.drawing import WIDTH
from quantflux.quant_core.report.plan_chart import COLOURS, FREE, TOTAL, parts, plan_chart
from quantflux.quant_core.report.plan_text import plan_text, verdict
from quantflux.quant_core.source import flux_source
from quantflux.quant_core.t5 import T5Config

GIB, MIB = 2**30, 2**20
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FLUX_DEV = FluxConfig(64, 64, 3072, 24, 12288, 4096, 768, 19, 38, True)
T5_XXL = T5Config(d_model=4096, d_kv=64, d_ff=10240, num_heads=64, num_layers=24, vocab_size=32128)
RESERVE = int(0.8 * GIB) + 400 * MIB  # the host's, beside weights, on Linux
BFLOAT16 = torch.bfloat16, torch.bfloat16


def recorded(name: str) -> list[dict]:
    return [json.loads(line) for line in (RESULTS / name).read_text().splitlines()]


def a_card(free: float, **changes) -> Card:
    """An H100 of which ``free`` GiB are free, with bitsandbytes' kernels, as when the results were recorded."""
    card = Card(
        name="NVIDIA H100 80GB HBM3",
        is_cpu=False,
        total=int(79.2 * GIB),
        free=int(free * GIB),
        loaded=0,
        workspace=32 * MIB,
        reserve=dict.fromkeys(("none", "int8", "nf4", "fp4"), RESERVE),
        encoder_reserve=RESERVE,
        least_share=0.0,
        whole=False,
        none=False,
        buffers=3,
        encoder_on_cpu=False,
        vae_on_cpu=False,
        vae_dtype=torch.bfloat16,
        decode_estimate=2178 * MIB * 2,
    )
    return dataclasses.replace(card, **changes)


class NoData(Reader):
    def get_tensor(self, name):
        raise AssertionError(f"the data of {name} was read")


class HeaderOnly(Checkpoint):
    """A checkpoint whose tensors cannot be read."""

    @contextmanager
    def reader(self):
        with ExitStack() as files:
            yield NoData(self.tensors, files)


def header_only(path) -> HeaderOnly:
    return HeaderOnly(**vars(open_checkpoint(path)))


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """Files of FLUX.1-dev's and T5-XXL's sizes without data."""
    folder = tmp_path_factory.mktemp("full_size")
    for name, model in {"flux": FLUX_DEV, "t5": T5_XXL}.items():
        shapes = model.tensor_shapes()
        write_sparse(folder / name, {n: ("BF16", shape, 2 * math.prod(shape)) for n, shape in shapes.items()}, {})
    return header_only(folder / "flux"), header_only(folder / "t5")


def planned(full_size, card=None, config=None, size=(1024, 1024, 1), dtypes=BFLOAT16):
    return plan(variants(*full_size, config), *size, card or a_card(78.66), lambda variant: dtypes)


def row(plan, label):
    return next(row for row in plan.rows if row.label == label)


# against what was measured ------------------------------------------------------------------------------------------

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


# against the files --------------------------------------------------------------------------------------------------

CONFIGS = [
    QuantConfig("int8", skip_modules=("linear1",)),
    QuantConfig("fp4", double_quant=True),
]


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_bytes_are_those_of_the_loaded_model(flux_file, config):
    source = flux_source(open_checkpoint(flux_file), config)
    found, tensors = plan_weights.weights(source), load(source)
    assert found.nbytes == planned_nbytes(source) == sum(map(nbytes, tensors.values()))
    data = sum(t._qdata.nbytes for t in tensors.values() if hasattr(t, "_qdata"))
    assert found.packed == data
    assert sum(plan_weights.module_sizes(source)) == found.nbytes


@pytest.mark.parametrize("config", CONFIGS[-1:], ids=QuantConfig.describe)
def test_a_packed_model_has_only_its_own_row(flux_file, t5_file, tmp_path, config):
    from quantflux.quant_core.export import provenance_of, save_single_file

    source = flux_source(open_checkpoint(flux_file), config)
    save_single_file(tmp_path / "packed.safetensors", load(source), provenance_of(source))
    packed = open_checkpoint(tmp_path / "packed.safetensors")
    (only,) = variants(packed, open_checkpoint(t5_file))
    assert only.asked and only.transformer.is_packed
    assert plan_weights.weights(only.transformer) == plan_weights.weights(source)
    with pytest.raises(CheckpointError, match="is already packed as|holds .* packed"):
        variants(packed, open_checkpoint(t5_file), QuantConfig("nf4", blocksize=512))


def test_each_precision_has_a_row_from_the_closest_to_the_least_close(full_size):
    rows = planned(full_size).rows
    assert [row.label for row in rows] == ["16-bit", "int8 threshold 6", "nf4", "nf4 double quant", "fp4"]
    assert [row.label for row in rows if row.asked] == ["nf4"]


@pytest.mark.parametrize("config", [None, QuantConfig("none"), QuantConfig("int8", double_quant=True)], ids=str)
def test_one_row_is_what_the_loaders_do(full_size, config):
    (asked,) = [row for row in planned(full_size, config=config).rows if row.asked]
    assert asked.label == (config or QuantConfig()).describe()
    assert asked.sampling.weights.nbytes == planned_nbytes(flux_source(full_size[0], config))


def test_what_the_config_says_holds_for_all_precisions(full_size):
    config = QuantConfig("fp4", double_quant=True, blocksize=256, int8_threshold=0.0, skip_modules=("single_blocks.*",))
    rows = planned(full_size, config=config).rows
    assert [row.label for row in rows] == [
        "16-bit",
        "int8 threshold 0",
        "nf4 blocksize 256",
        "nf4 blocksize 256 double quant",
        "fp4 blocksize 256",
        "fp4 blocksize 256 double quant",
    ]
    skipped = sum(
        t.nbytes for name, t in flux_source(full_size[0]).tensors.items() if name.startswith("single_blocks.")
    )
    assert all(row.sampling.weights.plain > skipped for row in rows)


def test_a_budget_has_a_row_of_its_own(full_size):
    config = QuantConfig("nf4", budget_gib=8.0)
    rows = planned(full_size, config=config).rows
    assert [row.label for row in rows if row.asked] == [config.describe()]
    asked = row(planned(full_size, config=config), config.describe())
    assert 7.5 * GIB < asked.sampling.weights.nbytes <= 8 * GIB
    assert [one.needed for one in rows if not one.asked] == [one.needed for one in planned(full_size).rows]


def test_a_file_that_is_no_flux_is_told_as_by_the_loader(full_size):
    with pytest.raises(CheckpointError, match="FLUX"):
        variants(full_size[1], full_size[1])


# sizes --------------------------------------------------------------------------------------------------------------


def test_activations_grow_with_the_picture_and_the_batch(full_size):
    def activations(*size):
        return row(planned(full_size, size=size), "16-bit").sampling.activations

    assert activations(1024, 1024, 2) == pytest.approx(2 * activations(1024, 1024, 1), rel=1e-6)
    tokens = Tokens.of(2048, 1024, 1).all / Tokens.of(1024, 1024, 1).all
    assert activations(2048, 1024, 1) == pytest.approx(tokens * activations(1024, 1024, 1), rel=0.01)


def test_small_pictures_are_limited_by_the_unpacked_weight(full_size):
    turn = row(planned(full_size, size=(256, 256, 1)), "nf4").sampling
    assert turn.moment == "single block, linear1"
    assert turn.scratch == 2 * 21504 * 3072 + 32 * MIB


def test_odd_sizes_are_rounded_as_the_host_rounds_them():
    # 1000 pixels are 125 of a latent, which is padded to 126
    assert Tokens.of(1000, 1000, 1).image == 63 * 63


def test_int8_needs_room_to_look_for_outliers_where_the_input_is_wide():
    assert int8_scratch((64, 4096), 100, 6.0, torch.bfloat16) > int8_scratch((64, 4096), 100, 0.0, torch.bfloat16)
    assert int8_scratch((4096, 64), 100, 6.0, torch.bfloat16) == int8_scratch((4096, 64), 100, 0.0, torch.bfloat16)


def test_our_kernels_need_less_for_int8(full_size):
    ours = row(planned(full_size, a_card(78.66, fused=True)), "int8 threshold 6").sampling
    assert ours.peak < row(planned(full_size), "int8 threshold 6").sampling.peak - 300 * MIB


# what fits ----------------------------------------------------------------------------------------------------------


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


# text and picture ---------------------------------------------------------------------------------------------------


def colours(picture) -> set[str]:
    return {"#{:02X}{:02X}{:02X}".format(*colour) for _, colour in picture.getcolors(2**20)}


def test_the_chart_has_each_part_and_the_lines_of_the_card(full_size):
    found = planned(full_size, a_card(11, total=12 * GIB))
    picture = plan_chart(found)
    assert picture.width == WIDTH
    assert colours(picture) >= set(COLOURS.values())


def test_lines_far_beyond_the_bars_are_left_out(full_size):
    found = planned(full_size, a_card(78, total=80 * GIB))
    assert not {COLOURS[TOTAL]} & colours(plan_chart(found))
    assert FREE in COLOURS


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


def test_the_text_has_every_figure_once_in_columns(full_size):
    text = plan_text(planned(full_size, a_card(5.4, total=6 * GIB)))
    assert "1 picture of 1024×1024, 4096 + 256 tokens a step" in text
    assert "5.40 GiB free of 6.00 GiB" in text
    assert "moved at every step" in text
    table = text.split("\n\n")[2].splitlines()
    assert len({len(line) for line in table}) == 1 and len(table) == 6


def test_a_decode_that_does_not_fit_is_said_to_go_in_tiles(full_size):
    text = plan_text(planned(full_size, a_card(5.4), size=(2048, 2048, 1)))
    assert "decodes in tiles" in text


def test_pictures_are_decoded_together_only_where_the_host_thinks_they_fit(full_size):
    size = (1024, 1024, 8)
    few, many = (planned(full_size, a_card(free), size=size).rows[0].decoding for free in (10, 79))
    assert few.activations < many.activations == 8 * planned(full_size).rows[0].decoding.activations
