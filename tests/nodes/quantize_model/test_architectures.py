"""Quantize Model on every architecture: predictions are those of the dequantized weights, with LoRAs too."""

import comfy.model_management
import comfy.model_patcher
import loras
import other_dits
import pytest
import torch
from flux_predictions import relative_error
from host_models import bits, with_loras
from other_dits import DITS, MAKERS, denoised, loaded_by_host
from quantflux.nodes.dequantize import QuantFluxDequantize
from quantflux.nodes.host.operations import packed_linears
from quantflux.quant_core.config import QuantConfig
from quantize_node import CLOSE, NF4, linears_of, packed_as_by_hand, packed_names, quantize_model


@pytest.mark.parametrize("config", [NF4, QuantConfig("fp4", torch.float32, double_quant=True, blocksize=128)], ids=str)
@pytest.mark.parametrize("name", DITS)
def test_a_packed_dit_predicts_what_the_host_does_with_the_dequantized_weights(name, config):
    stock = MAKERS[name]()
    prediction, before = denoised(stock), bits(stock.model)
    packed = quantize_model(stock, config)
    assert packed_names(packed) == linears_of(stock)
    twin = loaded_by_host(packed_as_by_hand(stock, linears_of(stock), config))
    assert relative_error(denoised(packed), denoised(twin)) < CLOSE
    assert relative_error(denoised(packed), prediction) > 2 * CLOSE
    assert torch.equal(denoised(stock), prediction)
    assert all(torch.equal(a, b) for a, b in zip(bits(stock.model), before, strict=True))


def test_a_u_net_has_its_linear_layers_packed_and_its_convolutions_kept():
    stock = other_dits.unet()
    packed = quantize_model(stock)
    assert packed_names(packed) == linears_of(stock)
    twin = other_dits.unet()
    twin.model.diffusion_model.load_state_dict(packed_as_by_hand(stock, linears_of(stock), NF4))
    assert relative_error(denoised(packed), denoised(twin)) < CLOSE
    assert relative_error(denoised(packed), denoised(stock)) > 2 * CLOSE


@pytest.mark.parametrize("name", MAKERS)
def test_int8_is_close_to_the_model(name):
    stock = MAKERS[name]()
    packed = quantize_model(stock, QuantConfig("int8", torch.float32))
    assert packed_names(packed) == linears_of(stock)
    assert 0 < relative_error(denoised(packed), denoised(stock)) < 0.05


@pytest.mark.parametrize("name", MAKERS)
def test_offloaded_layers_compute_the_same_bits(name):
    packed = quantize_model(MAKERS[name]())
    resident = denoised(packed)
    packed.partially_unload(packed.offload_device, packed.model_size() // 2)
    assert torch.equal(denoised(packed, load=False), resident)
    comfy.model_management.unload_all_models()
    assert torch.equal(denoised(packed), resident)


@pytest.mark.parametrize("name", MAKERS)
def test_dequantizing_gives_the_dequantized_weights(name):
    stock = MAKERS[name]()
    expected = packed_as_by_hand(stock, linears_of(stock), NF4)
    packed = quantize_model(stock)
    plain = QuantFluxDequantize.execute("auto", model=packed).args[0]
    assert type(plain) is comfy.model_patcher.ModelPatcher
    assert plain.model.memory_usage_factor == stock.model.memory_usage_factor
    found = plain.model.diffusion_model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor.cpu(), expected[key].cpu()) for key, tensor in found.items())
    assert relative_error(denoised(plain), denoised(packed)) < CLOSE


LORAS = {
    "SD3": {
        "diffusion_model.joint_blocks.0.x_block.attn.qkv": (384, 128),
        "transformer.transformer_blocks.1.ff.net.0.proj": (512, 128),
        "transformer.transformer_blocks.0.attn.to_k": (128, 128),
    },
    "Wan": {"diffusion_model.blocks.0.self_attn.q": (256, 256), "diffusion_model.blocks.1.ffn.0": (512, 256)},
}


@pytest.mark.parametrize("before", [True, False], ids=["LoRA before", "LoRA behind"])
@pytest.mark.parametrize("name", DITS)
def test_a_lora_has_the_effect_of_one_merged_into_the_dequantized_weights(name, before):
    m = loras.Maker(0, 0.1)
    tensors = {}
    for layer, (rows, columns) in LORAS[name].items():
        tensors |= {f"{layer}.lora_A.weight": m(4, columns), f"{layer}.lora_B.weight": m(rows, 4)}
    stock = MAKERS[name]()
    twin = loaded_by_host(packed_as_by_hand(stock, linears_of(stock), NF4))
    changed = quantize_model(with_loras(stock, tensors)) if before else with_loras(quantize_model(stock), tensors)
    merged = with_loras(twin, tensors)
    assert sum(map(len, changed.patches.values())) == len(tensors) // 2
    assert relative_error(denoised(changed), denoised(merged)) < CLOSE
    assert relative_error(denoised(changed), denoised(twin)) > 2 * CLOSE
    # as branches beside the packed weights
    layers = packed_linears(changed.model)
    assert {f"{name}.weight" for name, layer in layers.items() if layer.low_rank is not None} == set(changed.patches)
