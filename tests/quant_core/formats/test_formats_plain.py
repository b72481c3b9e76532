"""FLUX at 16 bit: single files, folders of diffusers, members of the family."""

import re

import pytest
import small_models
import torch
from format_files import DIFFUSERS_WEIGHTS, flux_folder_by_diffusers, pack_4bit
from loading_formats import (
    NONE,
    all_in_one,
    loaded_as_planned,
    packed_modules,
    require_same_tensors,
    require_values,
    saved,
)
from native_names import native_state_dict
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.flux.config import FluxConfig
from quantflux.quant_core.identify import FLUX
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import clip_l_source, flux_source, t5_source


@pytest.mark.parametrize("prefix", FLUX.prefixes)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_16_or_32_bit_single_file_is_read_under_every_prefix(tmp_path, native, dtype, prefix):
    tensors = {name: tensor.to(dtype) for name, tensor in native.items()}
    path = saved(tmp_path, tensors, prefix)
    require_values(loaded_as_planned(path, NONE), tensors)
    packed = loaded_as_planned(path)
    assert all(packed[name].dtype is dtype for name in tensors)
    require_values(packed, pack_4bit(tensors, packed_modules(packed))[1])


def test_a_file_with_the_norm_names_of_newer_hosts_is_the_same_model(tmp_path, native):
    renamed = {re.sub(r"(_norm)\.scale$", r"\1.weight", name): tensor for name, tensor in native.items()}
    assert len(renamed.keys() - native.keys()) == sum(name.endswith("_norm.scale") for name in native)
    require_values(loaded_as_planned(saved(tmp_path, renamed, ""), NONE), native)


def test_without_a_config_every_linear_module_of_a_16_bit_file_becomes_nf4(flux_file, linears):
    loaded = loaded_as_planned(flux_file)
    assert packed_modules(loaded) == linears
    assert {loaded[f"{module}.weight"]._params.quant_type for module in linears} == {"nf4"}


@pytest.mark.parametrize("config", [None, NONE], ids=["nf4", "16-bit"])
def test_each_model_of_an_all_in_one_checkpoint_is_read_by_itself(tmp_path, native, flux_file, t5_model, config):
    path, t5, clip_l = all_in_one(tmp_path, native, t5_model)
    require_same_tensors(loaded_as_planned(path, config), loaded_as_planned(flux_file, config))
    require_values(
        loaded_as_planned(path, NONE, read=t5_source), {name: tensor.bfloat16() for name, tensor in t5.items()}
    )
    require_values(load(clip_l_source(open_checkpoint(path))), clip_l)


@pytest.mark.parametrize(
    "save",
    [{}, {"max_shard_size": "100KB"}, {"variant": "fp16"}],
    ids=["single", "sharded", "variant"],
)
@pytest.mark.parametrize("config", [None, NONE, QuantConfig("int8")], ids=["nf4", "16-bit", "int8"])
def test_a_16_bit_diffusers_folder_is_the_same_model_as_the_single_file(tmp_path, flux_model, flux_file, save, config):
    folder = tmp_path / "transformer"
    flux_model.save_pretrained(folder, **save)
    shards = len(list(folder.glob("*.safetensors")))
    assert (shards > 5) is ("max_shard_size" in save)
    require_same_tensors(loaded_as_planned(folder, config), loaded_as_planned(flux_file, config))


def test_shards_of_a_variant_are_the_same_model_as_the_single_file(tmp_path, flux_model, flux_file):
    folder = tmp_path / "transformer"
    flux_model.save_pretrained(folder, variant="fp16", max_shard_size="100KB")
    assert (folder / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    require_same_tensors(loaded_as_planned(folder), loaded_as_planned(flux_file))


def test_a_single_file_under_diffusers_names_needs_no_folder(tmp_path, flux_model, flux_file):
    flux_model.save_pretrained(tmp_path)
    require_same_tensors(loaded_as_planned(tmp_path / DIFFUSERS_WEIGHTS), loaded_as_planned(flux_file))


FAMILY = {
    "dev, Kontext, Krea": {},
    "schnell": {"guidance_embeds": False},
    "Fill": {"in_channels": 384, "out_channels": 64},
    "Canny, Depth": {"in_channels": 128, "out_channels": 64},
}


@pytest.mark.parametrize("changes", FAMILY.values(), ids=FAMILY)
@pytest.mark.parametrize("kind", ["single file", "folder", "packed folder"])
def test_the_members_of_the_family_are_told_apart_by_their_shapes(tmp_path, kind, changes):
    model = small_models.random_flux(num_attention_heads=2, **changes)
    path, values = tmp_path / "flux", model.state_dict()
    if kind == "single file":
        small_models.save_native_flux(model, path)
    elif kind == "folder":
        model.save_pretrained(path)
    else:
        values = flux_folder_by_diffusers(model, QuantConfig("nf4"), path)
    source = flux_source(open_checkpoint(path), None if kind == "packed folder" else NONE)
    sizes = model.config
    assert source.model == FluxConfig(
        in_channels=sizes.in_channels,
        out_channels=sizes.out_channels or sizes.in_channels,
        hidden_size=sizes.num_attention_heads * sizes.attention_head_dim,
        num_heads=sizes.num_attention_heads,
        mlp_size=4 * sizes.num_attention_heads * sizes.attention_head_dim,
        context_in_dim=sizes.joint_attention_dim,
        vec_in_dim=sizes.pooled_projection_dim,
        depth=sizes.num_layers,
        depth_single_blocks=sizes.num_single_layers,
        guidance_embed=sizes.guidance_embeds,
    )
    require_values(load(source), native_state_dict(values))
