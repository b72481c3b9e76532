"""Models whose layers differ in precision: one file holds them bit for bit, a folder only what diffusers can say."""

import pytest
import torch
from diffusers import FluxTransformer2DModel
from mixed_costs import GIB, linears, nbytes_of, source_of, write_model_costs
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError, ConfigError
from quantflux.quant_core.export import provenance_of, save_diffusers_folder, save_single_file
from quantflux.quant_core.layouts import dequantize, is_packed, plain_tensors
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source


@pytest.fixture
def model_file(flux_file, tmp_path):
    """The small FLUX under a name that no other test puts costs beside."""
    path = tmp_path / "flux.safetensors"
    path.symlink_to(flux_file)
    return path


@pytest.fixture
def mixed(model_file):
    write_model_costs(model_file, {module: 1.0 + i for i, module in enumerate(linears(model_file))})
    source = source_of(model_file, nbytes_of(model_file) * 1.3 / GIB, int8_threshold=2.5, compute_dtype=torch.float16)
    assert {"nf4", "int8"} <= {source.recipe(module).precision for module in linears(model_file)}
    return source


def require_same_bits(ours, others):
    assert ours.keys() == others.keys()
    for name, tensor in ours.items():
        assert is_packed(tensor) == is_packed(others[name]), name
        for part, other in zip(plain_tensors(tensor), plain_tensors(others[name]), strict=True):
            assert part.dtype == other.dtype and torch.equal(part, other), name


def test_a_mixed_model_is_saved_to_one_file_and_read_back_bit_equal(mixed, tmp_path):
    tensors = load(mixed)
    path = tmp_path / "mixed.safetensors"
    save_single_file(path, tensors, provenance_of(mixed))
    again = flux_source(open_checkpoint(path))
    assert not again.packed and again.precisions == mixed.precisions
    assert again.config == QuantConfig(
        mixed.config.precision, torch.float16, mixed.config.double_quant, mixed.config.blocksize, int8_threshold=2.5
    )
    assert again.describe() == ", ".join(f"{number} × {label}" for label, number in mixed.precisions.items())
    reloaded = load(again)
    require_same_bits(tensors, reloaded)
    assert {t._params.threshold for t in reloaded.values() if is_packed(t) and hasattr(t._params, "threshold")} == {2.5}
    # and once more, from the packed file
    save_single_file(tmp_path / "twice.safetensors", reloaded, provenance_of(again))
    require_same_bits(tensors, load(flux_source(open_checkpoint(tmp_path / "twice.safetensors"))))


def test_a_budget_in_which_nothing_has_to_be_packed_is_kept_by_the_saved_file(model_file, tmp_path):
    source = source_of(model_file, 1.0)
    assert not source.packed
    save_single_file(tmp_path / "plain.safetensors", load(source), provenance_of(source))
    again = flux_source(open_checkpoint(tmp_path / "plain.safetensors"))
    assert not again.packed and again.describe() == "16-bit"
    require_same_bits(load(source), load(again))


def test_a_mixed_file_keeps_its_precisions_against_any_config(mixed, tmp_path):
    path = tmp_path / "mixed.safetensors"
    save_single_file(path, load(mixed), provenance_of(mixed))
    for config in (QuantConfig("nf4"), mixed.config, QuantConfig("int8")):
        with pytest.raises(CheckpointError, match="Disconnect the config to load the model as it is. To quantize"):
            flux_source(open_checkpoint(path), config)


def test_a_packed_model_is_not_planned_anew(model_file, tmp_path):
    source = flux_source(open_checkpoint(model_file), QuantConfig("nf4", double_quant=True))
    path = tmp_path / "packed.safetensors"
    save_single_file(path, load(source), provenance_of(source))
    words = "already packed as nf4 blocksize 64 double quant.*remove auto from skip_modules"
    with pytest.raises(CheckpointError, match=words):
        flux_source(open_checkpoint(path), QuantConfig("nf4", double_quant=True, budget_gib=1.0))


def test_4_and_8_bit_in_one_folder_are_refused_before_anything_is_written(mixed, tmp_path):
    with pytest.raises(ConfigError, match="both 4 and 8 bit.*single file"):
        save_diffusers_folder(tmp_path / "folder", load(mixed), provenance_of(mixed))
    assert not any(entry.name.startswith("folder") for entry in tmp_path.iterdir())


def test_4_bit_with_and_without_double_quant_and_16_bit_is_a_folder_that_diffusers_loads(
    model_file, tmp_path, diffusers_on_cpu
):
    source = source_of(model_file, nbytes_of(model_file) * 1.1 / GIB)
    recipes = {source.recipe(module) for module in linears(model_file)}
    assert {"none", "nf4"} == {recipe.precision for recipe in recipes} and len(recipes) > 2
    tensors = load(source)
    save_diffusers_folder(tmp_path / "folder", tensors, provenance_of(source))
    theirs = FluxTransformer2DModel.from_pretrained(tmp_path / "folder", torch_dtype=torch.bfloat16)
    ours = load(flux_source(open_checkpoint(tmp_path / "folder")))
    for name, tensor in ours.items():
        # what diffusers' skip list cannot keep packed is rounded to the dtype of the weights
        values = [dequantize(weight, torch.bfloat16) for weight in (tensor, tensors[name])]
        assert torch.equal(*values), name
    assert len([m for m in theirs.modules() if type(m).__name__ == "Linear4bit"]) > 0
