"""Sound files of a model that lacks something, or has it in a form that the model cannot be run from."""

from __future__ import annotations

import format_files
import pytest
import small_models
import torch
import transformers
from native_names import native_state_dict
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.source import clip_l_source, flux_source, t5_source
from safetensors.torch import save_file


def refused(source, tensors, folder, *words: str):
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with pytest.raises(CheckpointError) as error:
        source(open_checkpoint(path))
    for word in ("model.safetensors: ", *words):
        assert word in str(error.value)


@pytest.fixture(scope="module")
def clip_l():
    state = small_models.random_clip_l().state_dict()
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def test_each_tensor_of_a_clip_l_is_needed_in_its_shape(clip_l, tmp_path):
    # the host would draw its pictures with random numbers in place of what is missing
    for name, tensor in clip_l.items():
        if "position_ids" in name:
            continue
        rest = {other: t for other, t in clip_l.items() if other != name}
        words = [] if name.endswith("layers.0.mlp.fc1.weight") else [name]
        refused(clip_l_source, rest, tmp_path, *words)
        # there are CLIP-Ls of more positions
        if "position_embedding" not in name:
            refused(clip_l_source, rest | {name: torch.cat([tensor, tensor])}, tmp_path, "shape")


def test_a_packed_clip_l_is_refused_by_the_weights_name(clip_l, tmp_path):
    module = "text_model.encoder.layers.1.mlp.fc2"
    refused(clip_l_source, format_files.pack_4bit(clip_l, {module})[0], tmp_path, f"{module}.weight packed")


@pytest.mark.parametrize("module", ["shared", "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"])
def test_a_packed_table_of_a_t5_is_refused_by_its_name(t5_model, tmp_path, module):
    tensors = {n: t for n, t in t5_model.state_dict().items() if "embed_tokens" not in n}
    refused(t5_source, format_files.pack_4bit(tensors, {module})[0], tmp_path, f"{module}.weight packed")


def test_a_umt5_is_refused_since_its_later_biases_would_be_left_out(tmp_path):
    sizes = small_models.T5_SIZES
    umt5 = transformers.UMT5EncoderModel(transformers.UMT5Config(**sizes)).to(torch.bfloat16)
    tensors = {n: t for n, t in umt5.state_dict().items() if "embed_tokens" not in n}
    refused(t5_source, tensors, tmp_path, "is a UMT5 text encoder, not a T5", "use CLIPLoader")


@pytest.mark.parametrize("hidden_size", [1024, 1280], ids=["CLIP-H", "CLIP-G"])
def test_a_wider_clip_is_refused_by_its_width(tmp_path, hidden_size):
    config = transformers.CLIPTextConfig(hidden_size=hidden_size, num_attention_heads=16, num_hidden_layers=2)
    state = transformers.CLIPTextModel(config).to(torch.float16).state_dict()
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}
    refused(clip_l_source, tensors, tmp_path, f"has hidden size {hidden_size}", "clip_l.safetensors", "DualCLIPLoader")


# layout of the host's library -> what ComfyUI calls the format
COMFYUIS = {
    "TensorCoreNVFP4Layout": "nvfp4",
    "TensorCoreMXFP8Layout": "mxfp8",
    "TensorWiseINT8Layout": "int8_tensorwise",
    "TensorCoreConvRotW4A4Layout": "convrot_w4a4",
}


@pytest.mark.parametrize("layout", COMFYUIS)
@pytest.mark.parametrize("model", ["flux", "t5"])
def test_a_weight_in_a_format_of_comfyui_is_refused_by_its_format(flux_model, t5_model, tmp_path, model, layout):
    if model == "flux":
        source, tensors, module = flux_source, native_state_dict(flux_model.state_dict()), "single_blocks.0.linear1"
    else:
        tensors = {n: t for n, t in t5_model.state_dict().items() if "embed_tokens" not in n}
        source, module = t5_source, "encoder.block.1.layer.1.DenseReluDense.wo"
    tensors = format_files.as_comfyui(tensors, {module}, layout, COMFYUIS[layout])
    words = f"stores {module}.weight as {COMFYUIS[layout]}", "16-bit or fp8 file", "for this file use ComfyUI's own"
    refused(source, tensors, tmp_path, *words)


def test_nvfp4_is_known_without_its_description_too(flux_model, tmp_path):
    native = native_state_dict(flux_model.state_dict())
    stored = format_files.as_comfyui(native, {"img_in"}, "TensorCoreNVFP4Layout", "nvfp4")
    del stored["img_in.comfy_quant"]
    refused(flux_source, stored, tmp_path, "stores img_in.weight as nvfp4")


@pytest.mark.parametrize("text", [b"", b"\xff", b"[]", b"{}", b'{"format": 8}', b'{"format": "a b"}', b"[" * 100_000])
def test_a_description_that_says_nothing_is_passed_over(flux_model, tmp_path, text):
    native = native_state_dict(flux_model.state_dict())
    module = "single_blocks.0.linear2"
    stored, _ = format_files.as_scaled_float8(native, {module}, "weight_scale", "()", torch.float8_e4m3fn)
    path = tmp_path / "flux.safetensors"
    stored[f"{module}.comfy_quant"] = torch.tensor(list(text), dtype=torch.uint8)
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, path)
    assert flux_source(open_checkpoint(path)).packed[f"{module}.weight"].precision == "nf4"
    # a weight of 4 bits has half the columns, but is refused for its dtype
    rows, columns = native[f"{module}.weight"].shape
    stored[f"{module}.weight"] = torch.zeros(rows, columns // 2, dtype=torch.uint8)
    refused(flux_source, stored, tmp_path, f"{module}.weight as uint8, which cannot be read")


@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
def test_an_fp8_weight_that_has_lost_its_scale_is_refused_by_its_name(flux_model, tmp_path, suffix):
    native = native_state_dict(flux_model.state_dict())
    modules = {f"single_blocks.{i}.linear2" for i in (0, 1)}
    stored, _ = format_files.as_scaled_float8(native, modules, suffix, "()", torch.float8_e4m3fn)
    del stored[f"single_blocks.1.linear2.{suffix}"]
    refused(flux_source, stored, tmp_path, "single_blocks.1.linear2.weight without the scale")


def test_scales_whose_weights_are_no_longer_packed_are_refused_by_their_name(flux_model, tmp_path):
    native = native_state_dict(flux_model.state_dict())
    module = "single_blocks.0.linear2"
    for pack, statistic in (
        (format_files.pack_4bit, f"{module}.weight.absmax"),
        (format_files.pack_with_linear8bit, f"{module}.SCB"),
    ):
        stored, _ = pack(native, {module})
        stored = {n: t for n, t in stored.items() if ".quant_state." not in n}
        refused(flux_source, stored | {f"{module}.weight": native[f"{module}.weight"]}, tmp_path, statistic)
