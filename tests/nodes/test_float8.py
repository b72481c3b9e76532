import pytest
import torch
from flux_predictions import predict
from quantflux.nodes.host import flux_model as building
from quantflux.nodes.host.compute_dtype import encoder_dtype
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.operations import multiply_blocks_in_float8, packed_linears
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import FLOAT8, QuantConfig
from quantflux.quant_core.errors import ConfigError
from quantflux.quant_core.source import flux_source

HAS_FLOAT8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)


def loaded(path, compute_dtype):
    return load_flux_model(flux_source(open_checkpoint(path), QuantConfig("nf4", compute_dtype)))


@pytest.mark.skipif(HAS_FLOAT8, reason="the GPU can")
def test_a_device_without_float8_is_refused_before_anything_is_read(flux_file, monkeypatch):
    monkeypatch.setattr(building, "load", lambda *args: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match="float8 needs .* compute_dtype auto"):
        loaded(flux_file, FLOAT8)


@pytest.mark.skipif(not HAS_FLOAT8, reason="needs a GPU of compute capability 8.9")
def test_a_float8_model_predicts_nearly_what_a_bfloat16_one_does(flux_file):
    # as many tokens as are not few, which are multiplied in 16 bit
    expected = predict(loaded(flux_file, torch.bfloat16), side=32)
    found = predict(loaded(flux_file, FLOAT8), side=32)
    assert 0 < (found - expected).norm() / expected.norm() < 0.1


def test_only_layers_of_blocks_multiply_in_float8_and_all_else_is_as_with_bfloat16(flux_file):
    patcher = loaded(flux_file, torch.bfloat16)
    expected = predict(patcher)
    layers = packed_linears(patcher.model)
    for layer in layers.values():
        layer.compute_dtype = FLOAT8
    multiply_blocks_in_float8(patcher.model)
    for name, layer in layers.items():
        assert layer.float8 == ("_blocks." in name)
        assert layer.inner_dtype is torch.bfloat16
    if not torch.cuda.is_available():
        assert torch.equal(predict(patcher), expected)
    for layer in layers.values():
        layer.compute_dtype = None
    multiply_blocks_in_float8(patcher.model)
    assert not any(layer.float8 for layer in layers.values())


def test_a_text_encoder_takes_bfloat16_instead():
    assert encoder_dtype(FLOAT8, torch.device("cpu")) is torch.bfloat16
