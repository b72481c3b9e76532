"""Plans of unusual files and configs, and their chart where words are long."""

import numpy
import pytest
import torch
from planned import a_card, reserve
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.export import provenance_of, save_single_file
from quantflux.quant_core.memory import planned_nbytes, readable
from quantflux.quant_core.plan import plan, variants
from quantflux.quant_core.quantize import load
from quantflux.quant_core.report.drawing import MARGIN, TEXT, WIDTH, fitted, font
from quantflux.quant_core.report.plan_chart import ROW, TOP, plan_chart
from quantflux.quant_core.source import flux_source, t5_source


@pytest.fixture(scope="module")
def files(flux_file, t5_file, tmp_path_factory):
    """(model, how it was saved) -> file: both as they are, and saved at 16 bit by this project, to stay so."""
    folder = tmp_path_factory.mktemp("plan_cases")
    found = {("flux", "plain"): flux_file, ("t5", "plain"): t5_file}
    for name, path, open_source in (("flux", flux_file, flux_source), ("t5", t5_file, t5_source)):
        source = open_source(open_checkpoint(path), QuantConfig("none"))
        found[name, "16 bit"] = folder / f"{name}.safetensors"
        save_single_file(found[name, "16 bit"], load(source), provenance_of(source))
    return found


@pytest.mark.parametrize("t5", ["plain", "16 bit"])
@pytest.mark.parametrize("flux", ["plain", "16 bit"])
def test_without_a_config_the_marked_row_is_what_each_loader_makes_of_its_file(files, flux, t5):
    transformer, encoder = open_checkpoint(files["flux", flux]), open_checkpoint(files["t5", t5])
    (asked,) = [variant for variant in variants(transformer, encoder) if variant.asked]
    assert planned_nbytes(asked.transformer) == planned_nbytes(flux_source(transformer))
    assert planned_nbytes(asked.t5) == planned_nbytes(t5_source(encoder))


def test_where_everything_is_skipped_there_is_one_row(files):
    transformer, t5 = (open_checkpoint(files[name, "plain"]) for name in ("flux", "t5"))
    (only,) = variants(transformer, t5, QuantConfig("nf4", skip_modules=("*",)))
    assert (only.label, only.asked) == ("16-bit", True)
    assert not only.transformer.packed and not only.t5.packed
    skipped_by_one = variants(transformer, t5, QuantConfig("nf4", skip_modules=("double_blocks", "single_blocks")))
    assert len(skipped_by_one) > 1


def without_vram(files, config=None):
    """A plan in which all weights are offloaded, on a card of a long name."""
    card = a_card(
        512,
        name="cuda:0 NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition : cudaMallocAsync",
        total=2**40,
        reserve=reserve(0),
        none=True,
    )
    found = variants(open_checkpoint(files["flux", "plain"]), open_checkpoint(files["t5", "plain"]), config)
    return plan(found, 64, 64, 1, card, lambda variant: (torch.bfloat16, torch.bfloat16))


def inked(picture, left: float, top: int, right: float, bottom: int) -> bool:
    """Whether the box holds letters: grid lines are lighter."""
    return bool((numpy.asarray(picture.convert("L").crop((round(left), top, round(right), bottom))) < 0xB0).any())


LONG = QuantConfig("fp4", blocksize=512, double_quant=True, budget_gib=7.123456789 / 1000)


def test_long_labels_of_a_plan_end_before_their_numbers_and_before_the_margin(files):
    found = without_vram(files, LONG)
    assert max(len(row.label) for row in found.rows) > 60
    picture = plan_chart(found)
    assert inked(picture, MARGIN, 0, WIDTH - MARGIN, TOP)
    assert not inked(picture, WIDTH - MARGIN + 1, 0, WIDTH, TOP)
    for i, row in enumerate(found.rows):
        numbers = f"{readable(row.sampling.peak)}, {readable(row.sampling.offloaded)} offloaded"
        end, top = WIDTH - MARGIN - font(TEXT).getlength(numbers), TOP + 10 + ROW * i
        assert inked(picture, end, top, WIDTH - MARGIN, top + 30)
        assert not inked(picture, end - 16, top, end - 2, top + 36), row.label


def test_a_long_title_keeps_its_end(files):
    words, size = fitted("Nothing fits whole; " + "x" * 200, 900, (38, 30), " is nearest")
    assert size == 30 and font(size).getlength(words) <= 900
    assert words.startswith("Nothing fits whole; x") and words.endswith("x… is nearest")
    assert fitted("nf4", 900, (38, 30), " is the best that fits") == ("nf4 is the best that fits", 38)
