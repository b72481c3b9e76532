"""LoRAs on packed weights: the effect that the host gives them on the dequantized weights, and no trace afterwards."""

import logging

import comfy.model_management
import loras
import pytest
import torch
from flux_predictions import predict, relative_error
from host_models import with_loras
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.operations import packed_linears
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import dequantize, is_packed
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source
from safetensors.torch import save_file

NF4 = QuantConfig("nf4")


@pytest.fixture(scope="module")
def models(flux_file, tmp_path_factory):
    """A function from a config to the packed model and to a plain one of its dequantized weights."""
    known = {}

    def get(config):
        if config not in known:
            with torch.inference_mode():
                source = flux_source(open_checkpoint(flux_file), config)
                plain = {n: dequantize(t, torch.float32).contiguous() for n, t in load(source).items()}
                path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
                save_file(plain, path)
                as_plain = flux_source(open_checkpoint(path), QuantConfig("none"))
                known[config] = load_flux_model(source), load_flux_model(as_plain)
        return known[config]

    return get


def branches(patcher) -> int:
    return sum(layer.low_rank is not None for layer in packed_linears(patcher.model).values())


def assert_same_effect(packed, plain, *tensors, bound=2e-3, strength=1.0):
    base = predict(packed)
    ours = predict(with_loras(packed, *tensors, strength=strength))
    expected = predict(with_loras(plain, *tensors, strength=strength))
    assert relative_error(ours, expected) < bound
    assert relative_error(ours, base) > 5 * bound
    assert torch.equal(predict(packed), base)


@pytest.mark.parametrize("kind", loras.PLAIN)
def test_plain_lora_runs_beside_the_weights_in_every_key_form(models, kind):
    packed, plain = models(NF4)
    assert_same_effect(packed, plain, loras.PLAIN[kind]())
    predict(with_loras(packed, loras.PLAIN[kind]()))
    assert branches(packed) > 0
    assert not any(layer.weight_function for layer in packed_linears(packed.model).values())


@pytest.mark.parametrize("kind", loras.OTHERS)
def test_other_kinds_are_added_to_the_dequantized_weight(models, kind):
    assert_same_effect(*models(NF4), loras.OTHERS[kind]())


@pytest.mark.parametrize(
    "config",
    [QuantConfig("fp4"), QuantConfig("nf4", double_quant=True), QuantConfig("nf4", skip_modules=("linear1", "img_in"))],
    ids=lambda config: f"{config.describe()} {' '.join(config.skip_modules)}",
)
def test_stacks_of_every_kind_on_every_4_bit_model(models, config):
    everything = [make() for make in (*loras.PLAIN.values(), *loras.OTHERS.values())]
    assert_same_effect(*models(config), *everything, strength=0.5)


def test_int8_takes_them_too(models):
    # LLM.int8() also rounds activations, which a plain product does not
    assert_same_effect(*models(QuantConfig("int8")), loras.kohya(), loras.peft(), bound=0.02)


@pytest.mark.parametrize("tensors", [loras.peft(), loras.lokr()], ids=["peft", "lokr"])
def test_plus_and_minus_the_same_leave_the_base_to_the_bit(models, tensors):
    packed, _ = models(NF4)
    base = predict(packed)
    once = with_loras(packed, tensors, strength=0.7)
    assert not torch.equal(predict(once), base)
    assert torch.equal(predict(with_loras(once, tensors, strength=-0.7)), base)
    assert torch.equal(predict(with_loras(packed, tensors, strength=0.0)), base)


def test_a_swap_leaves_every_layer_where_it_is(models):
    packed, plain = models(NF4)
    one, other = with_loras(packed, loras.kohya(), loras.full_difference()), with_loras(packed, loras.peft())
    predict(one)
    weights = {name: layer.weight for name, layer in packed_linears(packed.model).items()}
    swapped = predict(other)
    assert all(layer.weight is weights[name] for name, layer in packed_linears(packed.model).items())
    assert relative_error(swapped, predict(with_loras(plain, loras.peft()))) < 2e-3
    # nothing of the first is left, in the biases neither
    comfy.model_management.unload_all_models()
    assert torch.equal(predict(other), swapped)


def test_a_change_of_strength_keeps_every_shape(models):
    packed, _ = models(NF4)

    def shapes(strength, *tensors):
        predict(with_loras(packed, *tensors, strength=strength))
        layers = packed_linears(packed.model).items()
        return {name: layer.low_rank.up.shape for name, layer in layers if layer.low_rank is not None}

    assert shapes(1.0, loras.peft()) == shapes(0.3, loras.peft()) == shapes(1.0, loras.peft(), loras.peft(seed=9))


def test_the_host_counts_the_bytes_of_the_branches(models):
    packed, _ = models(NF4)
    predict(packed)
    without = packed.loaded_size() if packed.loaded_size() else packed.model_size()
    more = with_loras(packed, loras.kohya())
    predict(more)
    branch_bytes = sum(
        layer.low_rank.nbytes for layer in packed_linears(packed.model).values() if layer.low_rank is not None
    )
    assert branch_bytes > 0
    assert more.model_size() == without + branch_bytes
    assert more.model_size() == comfy.model_management.module_size(more.model)
    assert packed.model_size() == without


@pytest.mark.parametrize("make", [loras.peft, loras.dora], ids=["peft", "dora"])
def test_offloaded_layers_and_reloaded_ones_give_the_same_bits(models, make):
    packed, _ = models(NF4)
    more = with_loras(packed, make())
    resident = predict(more)
    more.partially_unload(more.offload_device, more.model_size() // 2)
    assert torch.equal(predict(more), resident)
    more.partially_load(more.load_device, more.model_size())
    assert torch.equal(predict(more), resident)
    comfy.model_management.unload_all_models()
    assert torch.equal(predict(more), resident)


def test_a_lora_of_another_model_is_named_once_and_the_rest_of_it_works(models, caplog):
    packed, _ = models(NF4)
    wrong = loras.kohya()
    wrong["lora_unet_single_blocks_1_linear2.lora_down.weight"] = torch.ones(4, 77)
    with caplog.at_level(logging.WARNING):
        more = with_loras(packed, wrong)
        predict(more)
        predict(more)
    named = [record for record in caplog.records if "single_blocks.1.linear2" in record.getMessage()]
    assert len(named) == 1
    assert branches(packed) == 3


def test_a_control_lora_widens_the_input_and_is_taken_off_again(models):
    packed, plain = models(NF4)
    predict(packed)
    before = packed.model.diffusion_model.img_in.weight
    for patcher in (packed, plain):
        comfy.model_management.load_models_gpu([with_loras(patcher, loras.control())])
    ours, expected = (p.model.diffusion_model.img_in.weight for p in (packed, plain))
    assert ours.shape == expected.shape == (256, 128)
    assert relative_error(ours.float(), expected.float()) < 1e-2
    comfy.model_management.load_models_gpu([packed])
    after = packed.model.diffusion_model.img_in.weight
    assert is_packed(after)
    assert torch.equal(dequantize(after, torch.float32), dequantize(before, torch.float32))
