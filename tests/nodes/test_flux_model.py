import comfy.model_management
import pytest
import torch
from bnb_references import quantized_by_diffusers
from flux_predictions import predict, predict_with_diffusers, prediction_bound, relative_error
from host_models import stock_flux
from quantflux.nodes.host import flux_model as flux_model_module
from quantflux.nodes.host import quantized
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.memory import planned_nbytes
from quantflux.quant_core.source import flux_source
from quantize_node import quantize_model

CONFIGS = [
    QuantConfig("nf4"),
    QuantConfig("nf4", double_quant=True),
    QuantConfig("fp4"),
    QuantConfig("int8"),
    QuantConfig("none"),
]


def loaded(path, config: QuantConfig):
    return load_flux_model(flux_source(open_checkpoint(path), config))


@pytest.mark.parametrize(
    "config",
    [
        QuantConfig("nf4", torch.float32),
        QuantConfig("fp4", torch.float32),
        QuantConfig("nf4", torch.float32, double_quant=True),
        QuantConfig("int8"),
        QuantConfig("int8", int8_threshold=2.0),
    ],
    ids=QuantConfig.describe,
)
def test_predictions_are_those_of_diffusers_with_bitsandbytes(flux_model, flux_file, config, tmp_path, monkeypatch):
    theirs = predict_with_diffusers(quantized_by_diffusers(flux_model, config, tmp_path, monkeypatch, torch.float32))
    unquantized = predict_with_diffusers(flux_model)
    ours = predict(loaded(flux_file, config))
    # double quantization is not the same to the bit: stacked parts share one offset, diffusers' have one each
    bound = 2e-3 if config.double_quant else prediction_bound(config)
    assert relative_error(ours, theirs) < bound
    # and it is not that nothing was quantized
    assert relative_error(ours, unquantized) > 2 * bound


def test_unquantized_predictions_are_those_of_diffusers(flux_model, flux_file):
    assert relative_error(predict(loaded(flux_file, QuantConfig("none"))), predict_with_diffusers(flux_model)) < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_the_host_counts_the_bytes_that_are_held(flux_file, config):
    source = flux_source(open_checkpoint(flux_file), config)
    patcher = load_flux_model(source)
    outside_the_transformer = patcher.model_size() - comfy.model_management.module_size(patcher.model.diffusion_model)
    assert patcher.model_size() - outside_the_transformer == planned_nbytes(source)


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_unloading_and_loading_again_changes_no_bit(flux_file, config):
    patcher = loaded(flux_file, config)
    before = predict(patcher)
    comfy.model_management.unload_all_models()
    assert torch.equal(predict(patcher), before)


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_offloaded_layers_compute_the_same_bits(flux_file, config):
    patcher = loaded(flux_file, config)
    resident = predict(patcher)
    patcher.partially_unload(patcher.offload_device, patcher.model_size() // 2)
    assert torch.equal(predict(patcher, as_it_lies=True), resident)


def test_a_finished_load_leaves_nothing_behind_when_the_next_one_fails(flux_file):
    source = flux_source(open_checkpoint(flux_file), QuantConfig("nf4"))
    comfy.model_management.unload_all_models()
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        load_flux_model(source)
    assert comfy.model_management.current_loaded_models == []


@pytest.mark.parametrize("precision, begun", [("int8", 1), ("nf4", 0)])
def test_int8_kernels_begin_to_be_compiled_for_what_they_multiply(flux_file, precision, begun, monkeypatch):
    calls = []
    for module in (flux_model_module, quantized):
        monkeypatch.setattr(module, "compile_ahead", lambda *about: calls.append(about))
    config = QuantConfig(precision, torch.float16, int8_threshold=3.0)
    device = comfy.model_management.get_torch_device()
    loaded(flux_file, config)
    assert calls == begun * [(device, torch.float16, 3.0)]
    quantize_model(stock_flux(flux_file), config)
    assert calls == 2 * begun * [(device, torch.float16, 3.0)]
