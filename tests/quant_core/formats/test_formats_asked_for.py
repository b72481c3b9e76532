"""What a config asks of a packed FLUX."""

import json

import pytest
import torch
from format_files import pack_4bit
from loading_formats import (
    BY_DIFFUSERS,
    NESTED,
    NONE,
    loaded_as_planned,
    require_same_tensors,
    require_values,
    saved,
)
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.layouts import is_packed
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source


@pytest.mark.parametrize("config", BY_DIFFUSERS.values(), ids=BY_DIFFUSERS)
def test_without_a_config_a_packed_model_keeps_its_own_and_the_same_config_is_accepted(folder_of_diffusers, config):
    folder, _ = folder_of_diffusers(config)
    source = flux_source(open_checkpoint(folder))
    assert source.is_packed and not source.packed
    own = source.config
    assert (own.precision, own.blocksize, own.double_quant) == (config.precision, config.blocksize, config.double_quant)
    require_same_tensors(loaded_as_planned(folder, config), loaded_as_planned(folder))


def test_a_config_that_skips_what_the_packed_file_has_at_16_bit_is_accepted(folder_of_diffusers):
    # the recipe that diffusers made the folder by: only one part of each fused module was left
    config = QuantConfig("nf4", skip_modules=("to_k",))
    folder, values = folder_of_diffusers(config)
    require_values(loaded_as_planned(folder, config), values)


@pytest.mark.parametrize(
    ("own", "asked", "words"),
    [
        ("nf4", QuantConfig("fp4"), ("packed as nf4", "asks for fp4")),
        ("fp4", QuantConfig("nf4"), ("packed as fp4", "asks for nf4")),
        ("nf4", QuantConfig("int8"), ("packed as nf4", "asks for int8")),
        ("int8", QuantConfig("nf4"), ("packed as int8", "asks for nf4")),
        ("nf4", NONE, ("packed as nf4", "asks for 16-bit")),
        ("int8", NONE, ("packed as int8", "asks for 16-bit")),
        ("nf4", QuantConfig("nf4", blocksize=128), ("nf4 blocksize 64", "nf4 blocksize 128")),
        ("nf4", NESTED, ("packed as nf4 blocksize 64,", "asks for nf4 double quant")),
        ("nf4 nested", QuantConfig("nf4"), ("nf4 blocksize 64 double quant", "asks for nf4.")),
        ("nf4", QuantConfig("nf4", skip_modules=("txt_in",)), ("txt_in packed", "skip_modules")),
        ("nf4", QuantConfig("nf4", skip_modules=("to_k",)), ("double_blocks.0.img_attn.qkv packed", "skip_modules")),
        ("int8", QuantConfig("int8", skip_modules=("proj_out",)), ("single_blocks.0.linear2 packed", "skip_modules")),
    ],
    ids=lambda value: value.describe() if isinstance(value, QuantConfig) else None,
)
def test_a_config_that_would_change_packed_weights_is_refused_with_what_disagrees(
    folder_of_diffusers, own, asked, words
):
    folder, _ = folder_of_diffusers(BY_DIFFUSERS[own])
    with pytest.raises(CheckpointError) as error:
        flux_source(open_checkpoint(folder), asked)
    for word in ("transformer: ", *words, "Disconnect the config", "load the 16-bit model"):
        assert word in str(error.value)


@pytest.mark.parametrize("double_quant", [False, True])
def test_a_packed_single_file_that_disagrees_is_named_too(tmp_path, native, linears, double_quant):
    path = saved(tmp_path, pack_4bit(native, linears, blocksize=128, double_quant=double_quant)[0])
    with pytest.raises(CheckpointError, match="flux.safetensors: is already packed as nf4 blocksize 128"):
        flux_source(open_checkpoint(path), QuantConfig("nf4", double_quant=double_quant))


def test_another_int8_threshold_or_compute_dtype_is_accepted(folder_of_diffusers):
    folder, values = folder_of_diffusers(QuantConfig("int8"))
    for threshold in (0.0, 3.5):
        loaded = loaded_as_planned(folder, QuantConfig("int8", torch.float16, int8_threshold=threshold))
        assert {t._params.threshold for t in loaded.values() if is_packed(t)} == {threshold}
        require_values(loaded, values)
    folder, values = folder_of_diffusers(QuantConfig("nf4"))
    source = flux_source(open_checkpoint(folder), QuantConfig("nf4", torch.float32))
    assert source.config.compute_dtype is torch.float32
    require_values(load(source), values)


def test_the_int8_threshold_in_a_folders_config_is_kept(folder_copy):
    folder, _ = folder_copy(QuantConfig("int8"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["llm_int8_threshold"] = 4.5
    (folder / "config.json").write_text(json.dumps(config))
    loaded = loaded_as_planned(folder)
    assert {t._params.threshold for t in loaded.values() if is_packed(t)} == {4.5}


def test_what_a_16_bit_folder_says_of_its_quantization_does_not_quantize_it(tmp_path, flux_model, flux_file):
    # diffusers leaves quantization_config behind when it dequantizes a model
    flux_model.save_pretrained(tmp_path / "flux")
    file = tmp_path / "flux" / "config.json"
    left_over = BY_DIFFUSERS["int8"].to_diffusers().to_dict()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": left_over}))
    require_same_tensors(loaded_as_planned(tmp_path / "flux"), loaded_as_planned(flux_file))
