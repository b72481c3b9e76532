"""A budget on a whole model: from the header to the bytes that are held."""

import math

import pytest
import torch
from mixed_costs import DOUBLE, FINE, GIB, INT8, SIXTEEN, linears, nbytes_of, source_of, write_model_costs
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig, split_budget
from quantflux.quant_core.errors import CheckpointError, ConfigError
from quantflux.quant_core.layouts import is_packed, plain_tensors, quantize
from quantflux.quant_core.memory import model_nbytes, planned_nbytes
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source, t5_source
from safetensors.torch import load_file


@pytest.fixture
def model_file(flux_file, tmp_path):
    """The small FLUX under a name that no other test puts costs beside."""
    path = tmp_path / "flux.safetensors"
    path.symlink_to(flux_file)
    return path


def test_the_model_keeps_the_budget_and_is_what_each_recipe_makes_of_its_weight(model_file, device):
    write_model_costs(model_file, {module: 1.0 + i for i, module in enumerate(linears(model_file))})
    budget = nbytes_of(model_file) * 1.3 / GIB
    source = source_of(model_file, budget, int8_threshold=2.5)
    assert len(source.precisions) >= 2 and INT8 in source.precisions
    tensors = load(source, device)
    assert planned_nbytes(source) == model_nbytes(tensors.values())[0] <= budget * GIB
    # and nothing worth having was left over
    assert planned_nbytes(source) > 0.98 * budget * GIB
    stored = load_file(model_file)
    for name, tensor in tensors.items():
        assert is_packed(tensor) == (name in source.packed)
        expected = stored[name].to(device)
        expected = quantize(expected, source.packed[name]) if name in source.packed else expected
        for part, expected_part in zip(plain_tensors(tensor), plain_tensors(expected), strict=True):
            assert torch.equal(part, expected_part), name
    thresholds = {t._params.threshold for t in tensors.values() if is_packed(t) and hasattr(t._params, "threshold")}
    assert thresholds == {2.5}


def test_harmful_layers_get_more_bits(model_file):
    harmful = ("double_blocks.1.img_mlp.2", "single_blocks.0.linear1")
    write_model_costs(model_file, {module: 1000.0 if module in harmful else 1.0 for module in linears(model_file)})
    source = source_of(model_file, nbytes_of(model_file) * 1.15 / GIB, int8_threshold=2.5)
    assert {source.recipe(module).describe() for module in harmful} <= {INT8, SIXTEEN}
    assert source.precisions[DOUBLE] + source.precisions.get(FINE, 0) > len(linears(model_file)) / 2
    assert source.config.precision == "nf4"


def test_a_block_stands_for_its_layers_and_what_is_not_named_stays_at_16_bit(model_file):
    write_model_costs(model_file, {f"{kind}_blocks.{i}": 1.0 for kind in ("double", "single") for i in range(2)})
    source = source_of(model_file, nbytes_of(model_file) * 1.5 / GIB, int8_threshold=2.5)
    for block in ("double_blocks.0", "single_blocks.1"):
        assert len({source.recipe(m) for m in linears(model_file) if m.startswith(block)}) == 1
    outside = [m for m in linears(model_file) if "_blocks" not in m]
    assert outside and all(source.recipe(m).precision == "none" for m in outside)


def test_skipped_modules_stay_at_16_bit_and_count(model_file):
    write_model_costs(model_file, dict.fromkeys(linears(model_file), 1.0))
    skip = ("img_in", "linear2")
    budget = nbytes_of(model_file, skip_modules=skip) / GIB
    source = source_of(model_file, budget, skip_modules=skip, int8_threshold=2.5)
    assert {source.recipe(m).precision for m in linears(model_file) if m.endswith(("img_in", "linear2"))} == {"none"}
    assert planned_nbytes(source) <= budget * GIB


def test_without_calibration_the_weights_decide_and_no_layer_gets_int8(model_file):
    budget = nbytes_of(model_file) / GIB
    source = source_of(model_file, budget)
    assert source.costs == "rounding errors of the weights"
    assert planned_nbytes(source) <= budget * GIB
    assert set(source.precisions) > {FINE} and not source.uses_int8
    assert set(source_of(model_file, 1.5 * budget, precision="fp4").precisions) > {"fp4 blocksize 32 double quant"}
    int8 = source_of(model_file, 3 * budget, precision="int8")
    assert set(int8.precisions) == {"int8 threshold 6", "16-bit"} and int8.config.precision == "int8"


def test_looking_at_the_weights_is_told_and_can_be_stopped(model_file):
    config = QuantConfig("nf4", budget_gib=nbytes_of(model_file) / GIB)
    calls = []
    flux_source(open_checkpoint(model_file), config, lambda *call: calls.append(call))
    total = len(linears(model_file))
    assert calls == [(done, total) for done in range(total)]

    def stop(done, total):
        if done == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        flux_source(open_checkpoint(model_file), config, stop)


def test_the_description_tells_how_many_layers_have_which_precision(model_file):
    write_model_costs(model_file, dict.fromkeys(linears(model_file), 1.0))
    source = source_of(model_file, nbytes_of(model_file) * 1.3 / GIB, int8_threshold=2.5)
    text = source.describe()
    assert sum(source.precisions.values()) == len(linears(model_file))
    for label, number in source.precisions.items():
        assert f"{number} × {label}" in text
    assert "flux.safetensors.costs.csv" in text
    assert flux_source(open_checkpoint(model_file), QuantConfig("nf4", skip_modules=("img_in",))).describe() == "nf4"


@pytest.mark.parametrize("budget", [1.0, 1e12, 1e300])
def test_a_budget_above_16_bit_packs_nothing(model_file, budget):
    source = source_of(model_file, budget)
    assert (
        not source.packed
        and source.config.precision == "none"
        and source.precisions == {SIXTEEN: len(linears(model_file))}
    )
    stored = load_file(model_file)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in load(source).items())


def test_a_budget_that_is_too_small_is_refused_and_the_one_that_is_named_is_enough(model_file):
    with pytest.raises(ConfigError) as error:
        source_of(model_file, 0.0001)
    message = str(error.value)
    least = float(message.partition("but flux.safetensors takes ")[2].split()[0])
    assert "auto:0.0001 allows 0.0001 GiB" in message and f"Write auto:{least:g} or more" in message
    assert planned_nbytes(source_of(model_file, least)) <= least * GIB
    with pytest.raises(ConfigError):
        source_of(model_file, least - 2e-4)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("not_a_layer,nf4,1\n", "names not_a_layer, which the model does not have"),
        ("double_blocks.0,nf4,1\ndouble_blocks.0.img_mod.lin,nf4,1\n", "covers double_blocks.0.img_mod.lin twice"),
        ("img_in,fp4,1\n", "has no costs of nf4 double quant"),
    ],
)
def test_costs_of_another_model_are_refused_by_the_files_name(model_file, rows, words):
    model_file.with_name("flux.safetensors.costs.csv").write_text("layer,precision,squared_error\n" + rows)
    with pytest.raises(CheckpointError, match=words) as error:
        source_of(model_file, 1.0)
    assert "flux.safetensors.costs.csv" in str(error.value)


def test_a_budget_for_t5_is_refused(t5_file):
    with pytest.raises(ConfigError, match="second Quantization Config"):
        t5_source(open_checkpoint(t5_file), QuantConfig("nf4", budget_gib=1.0))


@pytest.mark.parametrize("budget", [0.0, -1.0, math.nan, math.inf])
def test_a_budget_has_to_be_a_size(budget):
    with pytest.raises(ConfigError, match="auto:<GiB>"):
        QuantConfig("nf4", budget_gib=budget)


def test_a_budget_for_16_bit_is_refused():
    with pytest.raises(ConfigError, match="packs nothing"):
        QuantConfig("none", budget_gib=1.0)


def test_the_budget_is_read_from_among_skipped_modules():
    assert split_budget(["img_in", "auto: 7.5", "proj_out"]) == (("img_in", "proj_out"), 7.5)
    assert split_budget(["img_in", "autoencoder"]) == (("img_in", "autoencoder"), None)
    otherwise = (["auto=7.5"], ["auto 7.5"], ["Auto7.5"], ["auto:7.5GiB"], ["auto:1_0"])
    for wrong in (["auto"], ["auto:"], ["auto:much"], ["auto:1", "auto:2"], *otherwise):
        with pytest.raises(ConfigError, match="auto:<GiB>"):
            split_budget(wrong)
