"""What packed weights cannot do is refused with the node to use instead; unpacked models of ours still do it."""

import comfy.hooks
import comfy.model_management
import loras
import pytest
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple
from flux_predictions import predict, relative_error
from host_models import with_loras
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.patcher import PackedWeightsError
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.source import flux_source


@pytest.fixture(scope="module")
def packed(flux_file):
    return load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig("nf4")))


@pytest.fixture(scope="module")
def plain(flux_file):
    return load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig("none")))


def merge(one, other):
    return ModelMergeSimple().merge(one, other, 0.5)[0]


def hook_lora(patcher):
    hook = comfy.hooks.WeightHook()
    key = "diffusion_model.double_blocks.0.img_attn.qkv.weight"
    return patcher.clone().add_hook_patches(hook, {key: ("diff", (loras.Maker(0)(768, 256),))})


def save(patcher):
    comfy.model_management.load_models_gpu([patcher], force_patch_weights=True)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda p: merge(p, p), "merged into another model"),
        (hook_lora, "changed by hooks while sampling"),
        (save, "saved by the host's nodes"),
    ],
    ids=["merge", "hook", "save"],
)
def test_it_is_refused_on_packed_weights_with_the_node_to_use(packed, what, words):
    base = predict(packed)
    with pytest.raises(PackedWeightsError, match=f"{words}.*Dequantize"):
        what(packed)
    assert (predict(packed) == base).all()


def test_a_model_at_16_bit_is_merged(flux_file, plain):
    other = load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig("none")))
    with torch.inference_mode():
        other.model.diffusion_model.final_layer.linear.weight.mul_(3)
    base = predict(plain)
    # half of one and half of three times as much
    assert relative_error(predict(merge(plain, other)) - base, predict(other) - base) == pytest.approx(0.5, abs=1e-2)


def test_a_model_at_16_bit_takes_hooks(plain):
    assert hook_lora(plain) == ["diffusion_model.double_blocks.0.img_attn.qkv.weight"]


def test_a_model_at_16_bit_is_saved_with_its_loras(plain):
    weight = plain.model.diffusion_model.double_blocks[0].img_attn.qkv.weight
    before = weight.clone()
    save(with_loras(plain, loras.kohya()))
    assert not torch.equal(plain.model.diffusion_model.double_blocks[0].img_attn.qkv.weight, before)
    predict(plain)
    assert torch.equal(plain.model.diffusion_model.double_blocks[0].img_attn.qkv.weight, before)


def test_a_plain_model_can_be_merged_into_a_packed_one(packed, plain):
    base = predict(packed)
    merged = predict(merge(packed, plain))
    assert not (merged == base).all()
    assert (predict(packed) == base).all()
