"""The rows of a plan against the files: bytes, and which precisions there are."""

import pytest
from planned import GIB, planned, row
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.layouts import nbytes
from quantflux.quant_core.memory import planned_nbytes
from quantflux.quant_core.plan import variants
from quantflux.quant_core.plan import weights as plan_weights
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source

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
