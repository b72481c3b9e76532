"""Quantize Model on FLUX: what Load Quantized Transformer makes of the same file, to the bit."""

import comfy.model_management
import comfy.model_patcher
import folder_paths
import format_files
import loras
import other_dits
import pytest
import torch
from flux_predictions import predict, relative_error
from host_models import bits, stock_flux, with_loras
from other_dits import denoised, scaled_float8_by_host
from quantflux.nodes.dequantize import QuantFluxDequantize
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.patcher import PackedModelPatcher
from quantflux.nodes.save import FOLDER, SINGLE_FILE, QuantFluxSave
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import dequantize, is_packed, plain_tensors, quantize
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source
from quantize_node import NF4, packed_names, quantize_model
from safetensors.torch import load_file, save_file

CONFIGS = [
    NF4,
    QuantConfig("fp4", double_quant=True, skip_modules=("linear1", "x_embedder", "double_blocks.*.txt_mlp.0")),
    QuantConfig("int8"),
]


def require_same_as_loaded(ours, path, config):
    theirs = load_flux_model(flux_source(open_checkpoint(path), config))
    one, other = (dict(model.model.diffusion_model.named_parameters()) for model in (ours, theirs))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert is_packed(tensor) == is_packed(other[name]), name
        for a, b in zip(plain_tensors(tensor), plain_tensors(other[name]), strict=True):
            # the host may have made the plain ones wider, which changes no value
            assert torch.equal(a, b if is_packed(tensor) else b.to(a.dtype)), name
    assert torch.equal(predict(ours), predict(theirs))


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_a_stock_flux_becomes_to_the_bit_what_our_loader_makes_of_its_file(flux_file, config):
    stock = stock_flux(flux_file)
    before, prediction = bits(stock.model), predict(stock)
    packed = quantize_model(stock, config)
    assert type(packed) is PackedModelPatcher and not packed.is_clone(stock)
    require_same_as_loaded(packed, flux_file, config)
    assert packed.model.memory_usage_factor != stock.model.memory_usage_factor
    assert type(stock) is comfy.model_patcher.ModelPatcher and not packed_names(stock)
    assert all(torch.equal(a, b) for a, b in zip(bits(stock.model), before, strict=True))
    assert torch.equal(predict(stock), prediction)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_stock_flux_cast_to_fp8_stands_for_its_values_in_bfloat16(flux_file, tmp_path, dtype):
    save_file(format_files.as_float8(load_file(flux_file), dtype)[0], tmp_path / "fp8.safetensors")
    config = QuantConfig("nf4", skip_modules=("img_in", "linear2"))
    packed = quantize_model(stock_flux(flux_file, dtype=dtype), config)
    assert {tensor.dtype for tensor in packed.model.diffusion_model.parameters()} == {torch.bfloat16}
    require_same_as_loaded(packed, tmp_path / "fp8.safetensors", config)


def test_a_scaled_fp8_file_in_the_stock_loader_stands_for_weight_times_scale(flux_file, tmp_path):
    tensors = load_file(flux_file)
    linears = set(flux_source(open_checkpoint(flux_file)).model.linear_shapes())
    stored, _ = format_files.as_scaled_float8(tensors, linears, "scale_weight", "()", torch.float8_e4m3fn)
    save_file(stored, tmp_path / "scaled.safetensors")
    stock = stock_flux(tmp_path / "scaled.safetensors")
    if not any(hasattr(module, "scale_weight") for module in stock.model.modules()):
        pytest.skip("this host reads such files as quantized tensors, which round otherwise")
    config = QuantConfig("nf4", skip_modules=("img_in", "linear2"))
    packed = quantize_model(stock, config)
    for name, tensor in load(flux_source(open_checkpoint(tmp_path / "scaled.safetensors"), config)).items():
        if name.endswith(".weight"):  # this host holds the biases beside them in fp8
            ours = packed.model.diffusion_model.get_parameter(name)
            assert is_packed(ours) == is_packed(tensor)
            assert torch.equal(dequantize(ours, torch.float32), dequantize(tensor, torch.float32)), name
    # its fp8 is gone, and with it what the host remembers for saving it
    plain = QuantFluxDequantize.execute("auto", model=packed).args[0]
    saved = plain.model.state_dict_for_saving()
    assert "scaled_fp8" not in "".join(saved) and not any("scale_weight" in name for name in saved)


def test_tensors_that_the_host_quantized_are_dequantized_by_it():
    tensors = other_dits.sd3_tensors(torch.bfloat16)
    name = "joint_blocks.1.x_block.mlp.fc1"
    stock = scaled_float8_by_host(tensors, [name])
    held = stock.model.diffusion_model.get_submodule(name).weight
    assert type(held) is not torch.Tensor and type(held.data) is not torch.Tensor
    packed = quantize_model(stock)
    ours = packed.model.diffusion_model.get_submodule(name).weight
    weight = tensors[f"{name}.weight"].float()
    scale = weight.abs().amax() / 448
    values = ((weight / scale).to(torch.float8_e4m3fn).float() * scale).to(torch.bfloat16)
    assert relative_error(dequantize(ours, torch.float32), dequantize(quantize(values, NF4), torch.float32)) < 1e-2
    assert relative_error(denoised(packed), denoised(stock)) < 0.2


def test_a_model_of_our_loader_at_16_bit_is_packed_too_and_keeps_its_source(flux_file, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    plain = load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig("none")))
    packed = quantize_model(plain, CONFIGS[1])
    require_same_as_loaded(packed, flux_file, CONFIGS[1])
    (figure,) = QuantFluxSave.execute("packed", SINGLE_FILE, model=packed).ui["quantflux"]
    assert open_checkpoint(tmp_path / figure["path"]).metadata["quantflux"].count("flux.safetensors") == 1


@pytest.mark.parametrize("format", [SINGLE_FILE, FOLDER])
def test_a_quantized_stock_flux_can_be_saved(flux_file, tmp_path, monkeypatch, format):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    (figure,) = QuantFluxSave.execute("packed", format, model=quantize_model(stock_flux(flux_file))).ui["quantflux"]
    saved = load(flux_source(open_checkpoint(tmp_path / figure["path"])))
    for name, tensor in load(flux_source(open_checkpoint(flux_file), NF4)).items():
        assert is_packed(tensor) == is_packed(saved[name])
        assert torch.equal(dequantize(saved[name], torch.float32), dequantize(tensor, torch.float32)), name


def test_a_lora_that_lies_on_the_shared_weights_is_not_packed(flux_file):
    stock = stock_flux(flux_file)
    other = with_loras(with_loras(stock, loras.kohya()), loras.full_difference())
    comfy.model_management.load_models_gpu([other])
    assert other.backup
    require_same_as_loaded(quantize_model(stock), flux_file, NF4)
