"""LoRAs on the text encoders: a packed T5 and a plain CLIP-L in one CLIP."""

import comfy.sd
import pytest
import torch
from flux_predictions import relative_error
from host_models import clip_of
from loras import Maker
from quantflux.nodes.host.operations import packed_linears
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import dequantize
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import t5_source
from safetensors.torch import save_file

NF4 = QuantConfig("nf4", torch.float32)
T5_LAYER = "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
CLIP_LAYER = "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"


def lora():
    m = Maker(0, 0.3)
    return {
        f"{T5_LAYER}.lora_down.weight": m(4, 128),
        f"{T5_LAYER}.lora_up.weight": m(128, 4),
        f"{CLIP_LAYER}.lora_down.weight": m(4, 64),
        f"{CLIP_LAYER}.lora_up.weight": m(128, 4),
    }


@pytest.fixture
def packed(text_files):
    return clip_of(text_files, NF4)


@pytest.fixture
def plain(text_files, tmp_path):
    tensors = load(t5_source(open_checkpoint(text_files / "t5.safetensors"), NF4))
    path = tmp_path / "plain.safetensors"
    save_file({name: dequantize(tensor, torch.float32).contiguous() for name, tensor in tensors.items()}, path)
    return clip_of(text_files, QuantConfig("none"), path)


def encoded(clip):
    text, pooled = clip.encode_from_tokens(clip.tokenize("a (red:1.3) circle"), return_pooled=True)
    return text.float(), pooled.float()


def patched(clip, strength):
    return comfy.sd.load_lora_for_models(None, clip, lora(), 0.0, strength)[1]


def test_both_encoders_feel_a_lora_as_the_host_gives_it_to_plain_weights(packed, plain):
    base = encoded(packed)
    ours, expected = encoded(patched(packed, 1.0)), encoded(patched(plain, 1.0))
    for got, wanted, before in zip(ours, expected, base, strict=True):
        assert relative_error(got, wanted) < 2e-3
        assert relative_error(got, before) > 0.01
    assert all(torch.equal(got, before) for got, before in zip(encoded(packed), base, strict=True))


def test_a_lora_of_t5_runs_beside_its_packed_weights(packed):
    encoded(patched(packed, 1.0))
    branched = [n for n, layer in packed_linears(packed.cond_stage_model).items() if layer.low_rank is not None]
    assert branched == ["t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"]
