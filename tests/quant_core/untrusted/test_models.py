"""Sound files of a model that lacks something, or has it in a form that the model cannot be run from."""

from __future__ import annotations

import format_files
import pytest
import small_models
import torch
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.flux.names import native_state_dict
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
