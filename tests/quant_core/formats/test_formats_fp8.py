"""FLUX in fp8: what it stands for."""

import pytest
import torch
from format_files import as_float8, as_scaled_float8, pack_4bit
from loading_formats import NONE, loaded_as_planned, require_values, saved
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.source import flux_source


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_plain_fp8_file_stands_for_its_values_in_bfloat16(tmp_path, native, linears, dtype):
    stored, values = as_float8(native, dtype)
    path = saved(tmp_path, stored, "model.diffusion_model.")
    require_values(loaded_as_planned(path, NONE), values)
    require_values(loaded_as_planned(path), pack_4bit(values, linears)[1])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("scale_shape", ["()", "(1,)", "(rows,)", "(rows, 1)"])
@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
def test_a_scaled_fp8_file_stands_for_its_weights_times_their_scales(
    tmp_path, native, linears, suffix, scale_shape, dtype
):
    stored, values = as_scaled_float8(native, linears, suffix, scale_shape, dtype)
    path = saved(tmp_path, stored, "model.diffusion_model.")
    require_values(loaded_as_planned(path, NONE), values)
    error = (values["img_in.weight"].float() - native["img_in.weight"].float()).norm()
    assert error < 0.1 * native["img_in.weight"].float().norm()


def test_a_scaled_fp8_file_becomes_what_its_values_become(tmp_path, native, linears):
    stored, values = as_scaled_float8(native, linears, "weight_scale", "()", torch.float8_e4m3fn)
    require_values(loaded_as_planned(saved(tmp_path, stored)), pack_4bit(values, linears)[1])


def test_fp8_scales_in_blocks_are_refused_by_name(tmp_path, native):
    stored = as_float8(native, torch.float8_e4m3fn)[0] | {"img_in.scale_weight": torch.ones(4, 2)}
    with pytest.raises(CheckpointError, match=r"flux.safetensors: .*img_in.scale_weight of shape \(4, 2\)"):
        flux_source(open_checkpoint(saved(tmp_path, stored)))
