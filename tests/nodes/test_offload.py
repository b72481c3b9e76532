import copy

import comfy.model_management
import pytest
import torch
from flux_predictions import predict
from quantflux.nodes.host import offload
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.operations import packed_linears
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import dequantize, is_packed, plain_tensors, quantize
from quantflux.quant_core.source import flux_source
from small_models import save_native_flux

CONFIGS = [QuantConfig("nf4"), QuantConfig("fp4", double_quant=True), QuantConfig("int8", int8_threshold=3.0)]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_a_block_holds_all_of_a_weight_and_every_bit_of_it(config):
    weight = quantize(torch.randn(96, 256, generator=torch.Generator().manual_seed(0)), config)
    block = offload.block_for(weight)
    placed = offload.placed(weight, block)
    first, end = block.data_ptr(), block.data_ptr() + block.nbytes
    assert first % 4096 == 0 and block.nbytes % 4096 == 0
    for ours, theirs in zip(plain_tensors(placed), plain_tensors(weight), strict=True):
        assert first <= ours.data_ptr() and ours.data_ptr() + ours.nbytes <= end
        assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    assert placed._params.orig_shape == weight._params.orig_shape
    assert torch.equal(dequantize(placed, torch.float32), dequantize(weight, torch.float32))
    if config.precision == "int8":
        assert placed._params.threshold == 3.0


def test_the_block_outlives_what_made_it():
    weight = quantize(torch.randn(96, 256), QuantConfig("nf4"))
    placed = offload.placed(weight, offload.block_for(weight))
    expected = dequantize(weight, torch.float32)
    del weight
    assert torch.equal(dequantize(placed, torch.float32), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a host without a GPU")
def test_nothing_is_pinned_where_there_is_no_gpu():
    assert offload.pinned(quantize(torch.randn(96, 256), QuantConfig("nf4"))) is None


@needs_gpu
@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_copies_on_the_gpu_are_the_same(config):
    device = torch.device("cuda")
    weight = quantize(torch.randn(96, 256, device=device), config).to("cpu")
    placed, block = offload.pinned(weight)
    try:
        assert all(part.is_pinned() for part in plain_tensors(placed))
        with offload.borrowed(placed, torch.zeros(96), device) as (copy, bias):
            assert is_packed(copy) and bias.device.type == "cuda"
            for ours, theirs in zip(plain_tensors(copy), plain_tensors(weight), strict=True):
                assert torch.equal(ours.cpu(), theirs)
    finally:
        comfy.model_management.unpin_memory(block)
    assert not block.is_pinned()


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_a_model_partly_pinned_predicts_the_same_bits_and_leaves_nothing_pinned(flux_model, tmp_path, config, dtype):
    save_native_flux(copy.deepcopy(flux_model).to(dtype), tmp_path / "flux.safetensors")
    model = load_flux_model(flux_source(open_checkpoint(tmp_path / "flux.safetensors"), config))
    resident = predict(model, dtype=dtype)
    before = comfy.model_management.TOTAL_PINNED_MEMORY
    model.partially_unload(model.offload_device, model.model_size() // 2)
    off = [layer for layer in packed_linears(model.model).values() if layer.weight.device.type == "cpu"]
    assert off and all(plain_tensors(layer.weight)[0].is_pinned() for layer in off)
    assert torch.equal(predict(model, as_it_lies=True, dtype=dtype), resident)
    model.detach()
    assert comfy.model_management.TOTAL_PINNED_MEMORY == before
    assert not any(layer.pinned_block is not None for layer in packed_linears(model.model).values())
