import pytest
from quantflux.quant_core.checkpoint import Checkpoint
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.header import TensorInfo
from quantflux.quant_core.identify import CLIP_L, FLUX, T5, find, identify

FILES = {
    "a FLUX transformer": ["double_blocks.0.img_attn.qkv.weight", "img_in.weight"],
    "a T5 text encoder": ["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"],
    "a CLIP-L text encoder": ["text_model.encoder.layers.0.mlp.fc1.weight"],
    "a LoRA": ["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"],
    "a VAE": ["decoder.up.0.block.0.conv1.weight"],
    "a small VAE (TAESD)": ["taesd_decoder.1.weight"],
    "a FLUX transformer under diffusers' names": ["single_transformer_blocks.0.proj_mlp.weight"],
}


def checkpoint(names) -> Checkpoint:
    return Checkpoint("/models/some_file.safetensors", {name: TensorInfo((1,), None) for name in names})


@pytest.mark.parametrize("description", FILES)
def test_a_file_is_known_by_its_tensors(description):
    assert identify(FILES[description]).description == description


def test_an_unknown_file_is_not_guessed():
    assert identify(["weight"]) is None


@pytest.mark.parametrize("description", [name for name in FILES if name != FLUX.description])
def test_another_file_in_the_transformers_place_is_named_with_what_loads_it(description):
    with pytest.raises(CheckpointError) as error:
        find(checkpoint(FILES[description]), FLUX)
    message = str(error.value)
    assert message.startswith("some_file.safetensors: is " + description)
    assert "for this file use" in message


def test_an_unknown_file_is_refused_by_what_it_lacks():
    with pytest.raises(CheckpointError, match="no tensor named encoder.block.0"):
        find(checkpoint(["weight"]), T5)


@pytest.mark.parametrize("kind", [FLUX, T5, CLIP_L], ids=lambda kind: kind.description)
def test_a_model_is_found_under_every_usual_prefix(kind):
    for prefix in kind.prefixes:
        names = [prefix + name for name in FILES[kind.description]]
        assert find(checkpoint([*names, "vae.decoder.up.0.weight"]), kind) == (kind, prefix)


def test_each_model_of_an_all_in_one_checkpoint_is_found():
    names = [kind.prefixes[1] + kind.marker for kind in (FLUX, T5, CLIP_L)]
    assert [find(checkpoint(names), kind)[0] for kind in (FLUX, T5, CLIP_L)] == [FLUX, T5, CLIP_L]
