import pytest
from quantflux.quant_core.checkpoint import Checkpoint
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.header import TensorInfo
from quantflux.quant_core.identify import CLIP_L, FLUX, FLUX_DIFFUSERS, T5, find, identify

FILES = {
    "a FLUX transformer": [FLUX.marker, "img_in.weight"],
    "a T5 text encoder": ["encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"],
    "a CLIP-L text encoder": ["text_model.encoder.layers.0.mlp.fc1.weight"],
    "a LoRA": ["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"],
    "a VAE": ["decoder.up.0.block.0.conv1.weight"],
    "a small VAE (TAESD)": ["taesd_decoder.1.weight"],
    "a FLUX transformer under diffusers' names": ["single_transformer_blocks.0.proj_mlp.weight"],
}
# what has the names of a model that is read, and more: (the model, what else it has, the node for it)
LOOKALIKES = {
    "a FLUX.2 transformer": (FLUX, "double_stream_modulation_img.lin.weight", "UNETLoader"),
    "a Chroma transformer": (FLUX, "distilled_guidance_layer.in_proj.weight", "UNETLoader"),
    "a HunyuanVideo transformer": (FLUX, "txt_in.individual_token_refiner.blocks.0.norm1.weight", "UNETLoader"),
    "a ControlNet": (FLUX, "controlnet_blocks.0.weight", "ControlNetLoader"),
    "a UMT5 text encoder": (T5, T5.marker.replace("block.0", "block.1").replace(".q.", ".relative_attention_bias."),
                            "CLIPLoader"),
    "a CLIP-G text encoder": (CLIP_L, CLIP_L.marker.replace("layers.0", "layers.31"), "DualCLIPLoader"),
}  # fmt: skip


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


@pytest.mark.parametrize("description", LOOKALIKES)
def test_a_model_that_has_another_ones_names_too_is_named_with_what_loads_it(description):
    kind, name, loader = LOOKALIKES[description]
    assert identify([*FILES[kind.description], name]).description == description
    for prefix in kind.prefixes:
        with pytest.raises(CheckpointError) as error:
            find(checkpoint([prefix + name for name in (*FILES[kind.description], name)]), kind)
        message = str(error.value)
        assert message.startswith(f"some_file.safetensors: is {description}, not {kind.description}.")
        assert f"for this file use {loader}" in message


@pytest.mark.parametrize("name", ["distilled_guidance_layer.in_proj.weight", "controlnet_x_embedder.weight"])
def test_it_is_told_apart_under_diffusers_names_too(name):
    with pytest.raises(CheckpointError, match="is a (Chroma transformer|ControlNet), not a FLUX transformer"):
        find(checkpoint([FLUX_DIFFUSERS.marker, name]), FLUX, FLUX_DIFFUSERS)


def test_what_stands_beside_a_model_in_an_all_in_one_checkpoint_is_not_taken_for_a_part_of_it():
    chroma = ["model.diffusion_model." + name for name in (FLUX.marker, "distilled_guidance_layer.in_proj.weight")]
    clip_g = [CLIP_L.marker, CLIP_L.marker.replace("layers.0", "layers.31")]
    encoders = [T5.prefixes[1] + T5.marker, CLIP_L.prefixes[1] + CLIP_L.marker]
    names = [*chroma, *encoders, *(f"text_encoders.clip_g.transformer.{name}" for name in clip_g)]
    assert find(checkpoint(names), T5) == (T5, T5.prefixes[1])
    assert find(checkpoint(names), CLIP_L) == (CLIP_L, CLIP_L.prefixes[1])


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
