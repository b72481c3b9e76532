"""Packed FLUX in single files."""

import pytest
import torch
from format_files import pack_4bit, pack_with_linear4bit, pack_with_linear8bit
from loading_formats import (
    NONE,
    all_in_one,
    loaded_as_planned,
    packed_modules,
    require_values,
    saved,
)
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import BLOCKSIZES
from quantflux.quant_core.identify import FLUX
from quantflux.quant_core.layouts import plain_tensors
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import clip_l_source, t5_source


@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_a_file_that_bitsandbytes_packed_stays_as_it_is(tmp_path, native, linears, quant_type, double_quant, blocksize):
    recipe = {"quant_type": quant_type, "blocksize": blocksize, "double_quant": double_quant}
    stored, values = pack_4bit(native, linears, **recipe)
    path = saved(tmp_path, stored)
    loaded = loaded_as_planned(path)
    assert packed_modules(loaded) == linears
    require_values(loaded, values)
    for module in linears:
        data, *statistics = plain_tensors(loaded[f"{module}.weight"])
        assert torch.equal(data, stored[f"{module}.weight"])
        names = ("nested_absmax", "absmax", "nested_quant_map") if double_quant else ("absmax",)
        for name, statistic in zip(names, statistics, strict=False):
            assert torch.equal(statistic, stored[f"{module}.weight.{name}"]), name


@pytest.mark.parametrize("quant_storage", [torch.uint8, torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "nested"])
def test_the_dtype_that_packed_bytes_are_stored_as_changes_nothing(
    tmp_path, native, linears, double_quant, quant_storage
):
    stored, values = pack_4bit(native, linears, double_quant=double_quant, quant_storage=quant_storage)
    assert stored["img_in.weight"].dtype is quant_storage
    require_values(loaded_as_planned(saved(tmp_path, stored)), values)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_the_state_dict_of_linear4bit_layers_is_read(tmp_path, native, linears, quant_type, nested):
    stored, values = pack_with_linear4bit(
        native, linears, quant_type=quant_type, compress_statistics=nested, compute_dtype=torch.bfloat16
    )
    loaded = loaded_as_planned(saved(tmp_path, stored))
    assert packed_modules(loaded) == linears
    require_values(loaded, values)


def test_the_state_dict_of_linear8bitlt_layers_is_read(tmp_path, native, linears):
    stored, values = pack_with_linear8bit(native, linears)
    loaded = loaded_as_planned(saved(tmp_path, stored, "model.diffusion_model."))
    assert packed_modules(loaded) == linears
    require_values(loaded, values)


@pytest.mark.parametrize("prefix", FLUX.prefixes)
def test_a_packed_single_file_is_read_under_every_prefix(tmp_path, native, linears, prefix):
    stored, values = pack_4bit(native, linears, double_quant=True)
    require_values(loaded_as_planned(saved(tmp_path, stored, prefix)), values)


@pytest.mark.parametrize("double_quant", [True, False], ids=["nested, as v1", "plain, as v2"])
def test_an_all_in_one_packed_checkpoint_gives_its_packed_flux_and_its_fp8_t5(
    tmp_path, native, linears, t5_model, double_quant
):
    stored, values = pack_4bit(native, linears, double_quant=double_quant)
    path, t5, clip_l = all_in_one(tmp_path, stored, t5_model)
    loaded = loaded_as_planned(path)
    assert packed_modules(loaded) == linears
    require_values(loaded, values)
    t5_values = {name: tensor.bfloat16() for name, tensor in t5.items()}
    require_values(loaded_as_planned(path, NONE, read=t5_source), t5_values)
    t5_packed = loaded_as_planned(path, read=t5_source)
    require_values(t5_packed, pack_4bit(t5_values, packed_modules(t5_packed))[1])
    require_values(load(clip_l_source(open_checkpoint(path))), clip_l)


def test_weights_that_a_packed_single_file_left_at_16_bit_stay_so(tmp_path, native, linears):
    left = {"img_in", "final_layer.linear", "double_blocks.1.img_attn.qkv"}
    stored, values = pack_4bit(native, linears - left)
    loaded = loaded_as_planned(saved(tmp_path, stored))
    assert packed_modules(loaded) == linears - left
    require_values(loaded, values)
