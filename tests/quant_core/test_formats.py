"""Every kind of FLUX file that people have, made by the library that they make it with.

``docs/formats.md`` lists the kinds, what becomes of each, and the test here that holds the loader to it.
"""

import ast
import json
import logging
import re
import time
from pathlib import Path

import pytest
import small_models
import torch
from format_files import (
    DIFFUSERS_WEIGHTS,
    IN_ALL_IN_ONE,
    as_float8,
    as_scaled_float8,
    change_tensors,
    flux_folder_by_diffusers,
    pack_4bit,
    pack_with_linear4bit,
    pack_with_linear8bit,
    packed_4bit,
    prefixed,
    shard,
    write_sparse,
)
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import BLOCKSIZES, QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.flux.config import FluxConfig
from quantflux.quant_core.flux.names import native_state_dict
from quantflux.quant_core.identify import FLUX
from quantflux.quant_core.layouts import FourBitLayout, dequantize, is_packed, plain_tensors
from quantflux.quant_core.memory import model_nbytes, planned_nbytes
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import clip_l_source, flux_source, t5_source
from safetensors.torch import load_file, save_file

NONE = QuantConfig("none")
NESTED = QuantConfig("nf4", double_quant=True)
BY_DIFFUSERS = {
    "nf4": QuantConfig("nf4"),
    "fp4": QuantConfig("fp4"),
    "nf4 nested": NESTED,
    "int8": QuantConfig("int8"),
    "nf4, modules skipped": QuantConfig("nf4", skip_modules=("proj_out", "x_embedder", "norm_out")),
    "int8, modules skipped": QuantConfig("int8", skip_modules=("proj_out", "transformer_blocks.0")),
}
SUFFIXES = {
    "nf4": ("weight", "absmax", "quant_map", "bitsandbytes__nf4", "bias"),
    "nf4 nested": ("weight", "absmax", "quant_map", "nested_absmax", "nested_quant_map", "bitsandbytes__nf4", "bias"),
    "int8": ("weight", "SCB", "weight_format", "bias"),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """For weights this small, threads cost more than they bring: far more where other programs keep cores busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def flux_model():
    """Smaller than the other tests' model: nearly every test here packs or unpacks one."""
    return small_models.random_flux(num_attention_heads=2)


@pytest.fixture(scope="module")
def flux_file(flux_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("flux") / "flux.safetensors"
    small_models.save_native_flux(flux_model, path)
    return path


@pytest.fixture(scope="module")
def native(flux_model):
    """The model's 16-bit tensors under native names."""
    return native_state_dict(flux_model.state_dict())


@pytest.fixture(scope="module")
def linears(native):
    return {name.removesuffix(".weight") for name, tensor in native.items() if tensor.ndim == 2}


@pytest.fixture(scope="module")
def folder_of_diffusers(flux_model, tmp_path_factory):
    """Recipe -> (a folder that diffusers packed, the native values that it stands for by bitsandbytes)."""
    made = {}

    def make(config, dtype=torch.bfloat16):
        if (config, dtype) not in made:
            folder = tmp_path_factory.mktemp("packed") / "transformer"
            values = flux_folder_by_diffusers(flux_model, config, folder, dtype)
            made[config, dtype] = folder, native_state_dict(values)
        return made[config, dtype]

    return make


@pytest.fixture
def folder_copy(folder_of_diffusers, tmp_path):
    """As above, a copy that a test may change."""

    def make(config, dtype=torch.bfloat16):
        folder, values = folder_of_diffusers(config, dtype)
        copy = tmp_path / "transformer"
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        return copy, values

    return make


def loaded_as_planned(path, config=None, component="", read=flux_source) -> dict[str, torch.Tensor]:
    """What a file or folder is loaded as: it must take the bytes that were planned from its header."""
    source = read(open_checkpoint(path, component), config)
    loaded = load(source)
    assert model_nbytes(loaded.values())[0] == planned_nbytes(source)
    return loaded


def require_values(loaded, expected):
    """``loaded`` stands for exactly the ``expected`` values, in their dtype."""
    assert loaded.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(dequantize(loaded[name], values.dtype), values), name


def require_same_tensors(loaded, expected):
    """Packed bytes and statistics are the same too."""
    assert loaded.keys() == expected.keys()
    for name in expected:
        assert loaded[name].shape == expected[name].shape, name
        for one, other in zip(plain_tensors(loaded[name]), plain_tensors(expected[name]), strict=True):
            assert torch.equal(one, other), name


def packed_modules(loaded) -> set[str]:
    return {name.removesuffix(".weight") for name, tensor in loaded.items() if is_packed(tensor)}


def saved(tmp_path, tensors, prefix="") -> Path:
    path = tmp_path / "flux.safetensors"
    save_file(prefixed(prefix, tensors), path)
    return path


def all_in_one(tmp_path, flux, t5_model) -> tuple[Path, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(a checkpoint of everything a picture needs, its T5's tensors in fp8, its CLIP-L's in float16)."""
    t5, _ = as_float8(t5_model.state_dict(), torch.float8_e4m3fn)
    t5.pop("encoder.embed_tokens.weight")
    clip_l = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in clip_l_tensors().items()}
    vae = {"decoder.up.0.block.0.conv1.weight": torch.zeros(8, 8, 3, 3, dtype=torch.bfloat16)}
    members = {"flux": flux, "t5": t5, "clip_l": clip_l, "vae": vae}
    path = tmp_path / "all_in_one.safetensors"
    save_file({n: t for key, member in members.items() for n, t in prefixed(IN_ALL_IN_ONE[key], member).items()}, path)
    return path, t5, clip_l


def clip_l_tensors():
    return small_models.random_clip_l().state_dict()


# 16 bit ---------------------------------------------------------------------------------------------------------------


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


# fp8 ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_plain_fp8_file_stands_for_its_values_in_bfloat16(tmp_path, native, linears, dtype):
    stored, values = as_float8(native, dtype)
    path = saved(tmp_path, stored, "model.diffusion_model.")
    require_values(loaded_as_planned(path, NONE), values)
    require_values(loaded_as_planned(path), pack_4bit(values, linears)[1])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("scale_shape", ["()", "(1,)", "(rows,)", "(rows, 1)"])
@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
def test_a_scaled_fp8_file_stands_for_its_weights_times_their_scales(
    tmp_path, native, linears, suffix, scale_shape, dtype
):
    stored, values = as_scaled_float8(native, linears, suffix, scale_shape, dtype)
    path = saved(tmp_path, stored, "model.diffusion_model.")
    require_values(loaded_as_planned(path, NONE), values)
    error = (values["img_in.weight"].float() - native["img_in.weight"].float()).norm()
    assert error < 0.1 * native["img_in.weight"].float().norm()


def test_a_scaled_fp8_file_becomes_what_its_values_become(tmp_path, native, linears):
    stored, values = as_scaled_float8(native, linears, "weight_scale", "()", torch.float8_e4m3fn)
    require_values(loaded_as_planned(saved(tmp_path, stored)), pack_4bit(values, linears)[1])


def test_fp8_scales_in_blocks_are_refused_by_name(tmp_path, native):
    stored = as_float8(native, torch.float8_e4m3fn)[0] | {"img_in.scale_weight": torch.ones(4, 2)}
    with pytest.raises(CheckpointError, match=r"flux.safetensors: .*img_in.scale_weight of shape \(4, 2\)"):
        flux_source(open_checkpoint(saved(tmp_path, stored)))


# packed single files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_a_file_that_bitsandbytes_packed_stays_as_it_is(tmp_path, native, linears, quant_type, double_quant, blocksize):
    recipe = {"quant_type": quant_type, "blocksize": blocksize, "double_quant": double_quant}
    stored, values = pack_4bit(native, linears, **recipe)
    path = saved(tmp_path, stored)
    loaded = loaded_as_planned(path)
    assert packed_modules(loaded) == linears
    require_values(loaded, values)
    for module in linears:
        data, *statistics = plain_tensors(loaded[f"{module}.weight"])
        assert torch.equal(data, stored[f"{module}.weight"])
        names = ("nested_absmax", "absmax", "nested_quant_map") if double_quant else ("absmax",)
        for name, statistic in zip(names, statistics, strict=False):
            assert torch.equal(statistic, stored[f"{module}.weight.{name}"]), name


@pytest.mark.parametrize("quant_storage", [torch.uint8, torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "nested"])
def test_the_dtype_that_packed_bytes_are_stored_as_changes_nothing(
    tmp_path, native, linears, double_quant, quant_storage
):
    stored, values = pack_4bit(native, linears, double_quant=double_quant, quant_storage=quant_storage)
    assert stored["img_in.weight"].dtype is quant_storage
    require_values(loaded_as_planned(saved(tmp_path, stored)), values)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_the_state_dict_of_linear4bit_layers_is_read(tmp_path, native, linears, quant_type, nested):
    stored, values = pack_with_linear4bit(
        native, linears, quant_type=quant_type, compress_statistics=nested, compute_dtype=torch.bfloat16
    )
    loaded = loaded_as_planned(saved(tmp_path, stored))
    assert packed_modules(loaded) == linears
    require_values(loaded, values)


def test_the_state_dict_of_linear8bitlt_layers_is_read(tmp_path, native, linears):
    stored, values = pack_with_linear8bit(native, linears)
    loaded = loaded_as_planned(saved(tmp_path, stored, "model.diffusion_model."))
    assert packed_modules(loaded) == linears
    require_values(loaded, values)


@pytest.mark.parametrize("prefix", FLUX.prefixes)
def test_a_packed_single_file_is_read_under_every_prefix(tmp_path, native, linears, prefix):
    stored, values = pack_4bit(native, linears, double_quant=True)
    require_values(loaded_as_planned(saved(tmp_path, stored, prefix)), values)


@pytest.mark.parametrize("double_quant", [True, False], ids=["nested, as v1", "plain, as v2"])
def test_an_all_in_one_packed_checkpoint_gives_its_packed_flux_and_its_fp8_t5(
    tmp_path, native, linears, t5_model, double_quant
):
    stored, values = pack_4bit(native, linears, double_quant=double_quant)
    path, t5, clip_l = all_in_one(tmp_path, stored, t5_model)
    loaded = loaded_as_planned(path)
    assert packed_modules(loaded) == linears
    require_values(loaded, values)
    t5_values = {name: tensor.bfloat16() for name, tensor in t5.items()}
    require_values(loaded_as_planned(path, NONE, read=t5_source), t5_values)
    t5_packed = loaded_as_planned(path, read=t5_source)
    require_values(t5_packed, pack_4bit(t5_values, packed_modules(t5_packed))[1])
    require_values(load(clip_l_source(open_checkpoint(path))), clip_l)


def test_weights_that_a_packed_single_file_left_at_16_bit_stay_so(tmp_path, native, linears):
    left = {"img_in", "final_layer.linear", "double_blocks.1.img_attn.qkv"}
    stored, values = pack_4bit(native, linears - left)
    loaded = loaded_as_planned(saved(tmp_path, stored))
    assert packed_modules(loaded) == linears - left
    require_values(loaded, values)


# packed folders of diffusers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", BY_DIFFUSERS.values(), ids=BY_DIFFUSERS)
def test_a_folder_that_diffusers_packed_is_fused_to_the_bits_of_its_parts(folder_of_diffusers, linears, config):
    folder, values = folder_of_diffusers(config)
    loaded = loaded_as_planned(folder)
    require_values(loaded, values)
    left = {
        "nf4, modules skipped": {
            "img_in", "final_layer.linear", "final_layer.adaLN_modulation.1",
            "single_blocks.0.linear2", "single_blocks.1.linear2",
        },
        "int8, modules skipped": {"final_layer.linear", "single_blocks.1.linear2"}
        | {name for name in linears if name.startswith(("double_blocks.0.", "single_blocks.0."))},
    }  # fmt: skip
    name = next(name for name, recipe in BY_DIFFUSERS.items() if recipe is config)
    assert packed_modules(loaded) == linears - left.get(name, set())


@pytest.mark.parametrize("config", [QuantConfig("nf4"), NESTED, QuantConfig("int8")], ids=QuantConfig.describe)
def test_halves_of_a_packed_adaln_are_in_native_order(folder_of_diffusers, config):
    folder, values = folder_of_diffusers(config)
    loaded = load(flux_source(open_checkpoint(folder)))
    stored = load_file(folder / DIFFUSERS_WEIGHTS)
    # diffusers has (scale, shift), the native layer (shift, scale), weight and bias alike
    scale, shift = stored["norm_out.linear.bias"].chunk(2)
    assert torch.equal(loaded["final_layer.adaLN_modulation.1.bias"], torch.cat((shift, scale)))
    data = plain_tensors(loaded["final_layer.adaLN_modulation.1.weight"])[0]
    assert torch.equal(data, torch.cat(stored["norm_out.linear.weight"].chunk(2)[::-1]))
    values = values["final_layer.adaLN_modulation.1.weight"]
    assert torch.equal(dequantize(loaded["final_layer.adaLN_modulation.1.weight"], torch.bfloat16), values)


@pytest.mark.parametrize("name", SUFFIXES)
def test_shards_of_a_packed_folder_by_diffusers_are_read(tmp_path, flux_model, folder_of_diffusers, name):
    folder = tmp_path / "transformer"
    flux_folder_by_diffusers(flux_model, BY_DIFFUSERS[name], folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 10
    whole, _ = folder_of_diffusers(BY_DIFFUSERS[name])
    require_same_tensors(loaded_as_planned(folder), loaded_as_planned(whole))


@pytest.mark.parametrize("name", SUFFIXES)
def test_shards_may_part_weights_from_every_kind_of_their_statistics(folder_of_diffusers, folder_copy, name):
    whole, _ = folder_of_diffusers(BY_DIFFUSERS[name])
    folder, values = folder_copy(BY_DIFFUSERS[name])
    suffixes = SUFFIXES[name]
    assert shard(folder, lambda tensor: suffixes.index(tensor.rpartition(".")[2])) == len(suffixes)
    loaded = loaded_as_planned(folder)
    require_values(loaded, values)
    require_same_tensors(loaded, loaded_as_planned(whole))


@pytest.mark.parametrize("name", SUFFIXES)
def test_shards_may_end_at_any_tensor_of_a_weight(folder_of_diffusers, folder_copy, name):
    whole, values = folder_of_diffusers(BY_DIFFUSERS[name])
    order = sorted(load_file(whole / DIFFUSERS_WEIGHTS))
    module = "transformer_blocks.1.attn.to_k."
    boundaries = [position for position, tensor in enumerate(order) if tensor.startswith(module)]
    # before its first tensor, between any two, and after its last
    assert len(boundaries) == len(SUFFIXES[name])
    for position in (*boundaries, boundaries[-1] + 1):
        folder, _ = folder_copy(BY_DIFFUSERS[name])
        assert shard(folder, lambda tensor, position=position: int(order.index(tensor) >= position)) == 2
        require_values(loaded_as_planned(folder), values)
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()


def test_shards_may_part_the_parts_of_a_fused_module(folder_of_diffusers, folder_copy):
    whole, _ = folder_of_diffusers(NESTED)
    folder, values = folder_copy(NESTED)
    parts = ("to_q", "to_k", "to_v", "proj_mlp", "add_k_proj")
    shard(folder, lambda tensor: next((i for i, part in enumerate(parts) if f".{part}." in tensor), len(parts)))
    require_values(loaded_as_planned(folder), values)


def test_a_shard_that_is_missing_is_named(folder_copy):
    folder, _ = folder_copy(NESTED)
    shard(folder, lambda tensor: int("absmax" in tensor))
    (folder / "diffusion_pytorch_model-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="lacks the file diffusion_pytorch_model-00002.safetensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize("precision", ["nf4", "int8"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_fused_module_with_a_skipped_part_is_unpacked_exactly_and_the_log_says_so(
    folder_of_diffusers, linears, precision, dtype, caplog
):
    folder, values = folder_of_diffusers(QuantConfig(precision, skip_modules=("to_k",)), dtype)
    with caplog.at_level(logging.INFO):
        loaded = loaded_as_planned(folder)
    fused = {f"double_blocks.{i}.img_attn.qkv" for i in (0, 1)} | {f"single_blocks.{i}.linear1" for i in (0, 1)}
    assert packed_modules(loaded) == linears - fused
    require_values(loaded, values)
    assert all(loaded[f"{module}.weight"].dtype is dtype for module in fused)
    messages = [record.getMessage() for record in caplog.records if "cannot stay packed" in record.getMessage()]
    assert len(messages) == len(fused)
    for module in fused:
        (message,) = [message for message in messages if f"{module}.weight" in message]
        assert message.startswith("transformer: ")
        assert "to_k.weight (not packed)" in message


@pytest.mark.parametrize(
    ("recipe", "says"),
    [({"blocksize": 128}, "nf4 blocksize 128"), ({"quant_type": "fp4"}, "fp4 blocksize 64")],
    ids=["blocksize", "quant_type"],
)
def test_a_fused_module_of_parts_packed_differently_is_unpacked_exactly_and_the_log_says_so(
    folder_copy, linears, recipe, says, caplog
):
    folder, values = folder_copy(NESTED)
    rows = 128
    name = "single_transformer_blocks.0.attn.to_k.weight"
    packed, other = packed_4bit(values["single_blocks.0.linear1.weight"][rows : 2 * rows], **recipe)

    def replace(tensors):
        for old in [tensor for tensor in tensors if tensor.startswith(name)]:
            del tensors[old]
        tensors.update({name + suffix: tensor for suffix, tensor in packed.items()})

    change_tensors(folder, replace)
    with caplog.at_level(logging.INFO):
        loaded = loaded_as_planned(folder)
    assert packed_modules(loaded) == linears - {"single_blocks.0.linear1"}
    expected = values["single_blocks.0.linear1.weight"].clone()
    expected[rows : 2 * rows] = other
    require_values(loaded, values | {"single_blocks.0.linear1.weight": expected})
    (message,) = [record.getMessage() for record in caplog.records if "cannot stay packed" in record.getMessage()]
    assert f"{name} ({says})" in message
    assert "to_q.weight (nf4 blocksize 64)" in message


def test_a_pipeline_folder_gives_the_component_that_is_asked_for(tmp_path, flux_model, t5_model, flux_file, t5_file):
    flux_model.save_pretrained(tmp_path / "transformer")
    t5_model.save_pretrained(tmp_path / "text_encoder_2")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    require_same_tensors(loaded_as_planned(tmp_path, component="transformer"), loaded_as_planned(flux_file))
    t5 = loaded_as_planned(tmp_path, component="text_encoder_2", read=t5_source)
    require_same_tensors(t5, loaded_as_planned(t5_file, read=t5_source))
    # a folder that is the component already is taken as it is
    require_same_tensors(
        loaded_as_planned(tmp_path / "transformer", component="transformer"), loaded_as_planned(flux_file)
    )
    with pytest.raises(CheckpointError, match="is a pipeline without a vae folder"):
        open_checkpoint(tmp_path, "vae")
    with pytest.raises(CheckpointError, match="a whole pipeline"):
        open_checkpoint(tmp_path)


# members of the family ------------------------------------------------------------------------------------------------

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


# packed before and packed now -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config", [config for config in BY_DIFFUSERS.values() if not config.double_quant], ids=QuantConfig.describe
)
def test_a_packed_folder_is_the_same_model_as_the_16_bit_file_packed_while_loading(
    folder_of_diffusers, flux_file, config
):
    folder, _ = folder_of_diffusers(config)
    require_same_tensors(loaded_as_planned(folder), loaded_as_planned(flux_file, config))


def test_a_nested_packed_folder_has_the_nibbles_of_packing_while_loading_and_its_own_absmax_expanded(
    folder_of_diffusers, flux_file
):
    folder, _ = folder_of_diffusers(NESTED)
    loaded, now = loaded_as_planned(folder), loaded_as_planned(flux_file, NESTED)
    for module in packed_modules(now):
        ours, theirs = loaded[f"{module}.weight"], now[f"{module}.weight"]
        assert torch.equal(plain_tensors(ours)[0], plain_tensors(theirs)[0]), module
        if ours._params.nested:  # a module of one part, taken over as it is
            require_same_tensors({module: ours}, {module: theirs})
    stored = load_file(folder / DIFFUSERS_WEIGHTS)

    def expanded(part):
        name = f"transformer_blocks.0.attn.{part}.weight"
        state = json.loads(bytes(stored[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))
        inner = stored[f"{name}.nested_quant_map"][stored[f"{name}.absmax"].long()]
        scales = stored[f"{name}.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: len(inner)]
        return inner * scales + state["nested_offset"]

    absmax = torch.cat([expanded(part) for part in ("to_q", "to_k", "to_v")])
    assert torch.equal(FourBitLayout.absmax(loaded["double_blocks.0.img_attn.qkv.weight"]._params), absmax)


@pytest.mark.parametrize(
    "config",
    [QuantConfig("nf4"), QuantConfig("fp4", blocksize=256), NESTED, QuantConfig("fp4", double_quant=True)],
    ids=QuantConfig.describe,
)
def test_a_packed_single_file_is_the_same_model_as_the_16_bit_file_packed_while_loading(
    tmp_path, native, linears, flux_file, config
):
    stored, _ = pack_4bit(
        native, linears, quant_type=config.precision, blocksize=config.blocksize, double_quant=config.double_quant
    )
    require_same_tensors(loaded_as_planned(saved(tmp_path, stored)), loaded_as_planned(flux_file, config))


# what is asked for ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", BY_DIFFUSERS.values(), ids=BY_DIFFUSERS)
def test_without_a_config_a_packed_model_keeps_its_own_and_the_same_config_is_accepted(folder_of_diffusers, config):
    folder, _ = folder_of_diffusers(config)
    source = flux_source(open_checkpoint(folder))
    assert source.is_packed and not source.packed
    own = source.config
    assert (own.precision, own.blocksize, own.double_quant) == (config.precision, config.blocksize, config.double_quant)
    require_same_tensors(loaded_as_planned(folder, config), loaded_as_planned(folder))


def test_a_config_that_skips_what_the_packed_file_has_at_16_bit_is_accepted(folder_of_diffusers):
    # the recipe that diffusers made the folder by: only one part of each fused module was left
    config = QuantConfig("nf4", skip_modules=("to_k",))
    folder, values = folder_of_diffusers(config)
    require_values(loaded_as_planned(folder, config), values)


@pytest.mark.parametrize(
    ("own", "asked", "words"),
    [
        ("nf4", QuantConfig("fp4"), ("packed as nf4", "asks for fp4")),
        ("fp4", QuantConfig("nf4"), ("packed as fp4", "asks for nf4")),
        ("nf4", QuantConfig("int8"), ("packed as nf4", "asks for int8")),
        ("int8", QuantConfig("nf4"), ("packed as int8", "asks for nf4")),
        ("nf4", NONE, ("packed as nf4", "asks for 16-bit")),
        ("int8", NONE, ("packed as int8", "asks for 16-bit")),
        ("nf4", QuantConfig("nf4", blocksize=128), ("nf4 blocksize 64", "nf4 blocksize 128")),
        ("nf4", NESTED, ("packed as nf4 blocksize 64,", "asks for nf4 double quant")),
        ("nf4 nested", QuantConfig("nf4"), ("nf4 blocksize 64 double quant", "asks for nf4.")),
        ("nf4", QuantConfig("nf4", skip_modules=("txt_in",)), ("txt_in packed", "skip_modules")),
        ("nf4", QuantConfig("nf4", skip_modules=("to_k",)), ("double_blocks.0.img_attn.qkv packed", "skip_modules")),
        ("int8", QuantConfig("int8", skip_modules=("proj_out",)), ("single_blocks.0.linear2 packed", "skip_modules")),
    ],
    ids=lambda value: value.describe() if isinstance(value, QuantConfig) else None,
)
def test_a_config_that_would_change_packed_weights_is_refused_with_what_disagrees(
    folder_of_diffusers, own, asked, words
):
    folder, _ = folder_of_diffusers(BY_DIFFUSERS[own])
    with pytest.raises(CheckpointError) as error:
        flux_source(open_checkpoint(folder), asked)
    for word in ("transformer: ", *words, "Disconnect the config", "load the 16-bit model"):
        assert word in str(error.value)


@pytest.mark.parametrize("double_quant", [False, True])
def test_a_packed_single_file_that_disagrees_is_named_too(tmp_path, native, linears, double_quant):
    path = saved(tmp_path, pack_4bit(native, linears, blocksize=128, double_quant=double_quant)[0])
    with pytest.raises(CheckpointError, match="flux.safetensors: is already packed as nf4 blocksize 128"):
        flux_source(open_checkpoint(path), QuantConfig("nf4", double_quant=double_quant))


def test_another_int8_threshold_or_compute_dtype_is_accepted(folder_of_diffusers):
    folder, values = folder_of_diffusers(QuantConfig("int8"))
    for threshold in (0.0, 3.5):
        loaded = loaded_as_planned(folder, QuantConfig("int8", torch.float16, int8_threshold=threshold))
        assert {t._params.threshold for t in loaded.values() if is_packed(t)} == {threshold}
        require_values(loaded, values)
    folder, values = folder_of_diffusers(QuantConfig("nf4"))
    source = flux_source(open_checkpoint(folder), QuantConfig("nf4", torch.float32))
    assert source.config.compute_dtype is torch.float32
    require_values(load(source), values)


def test_the_int8_threshold_in_a_folders_config_is_kept(folder_copy):
    folder, _ = folder_copy(QuantConfig("int8"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["llm_int8_threshold"] = 4.5
    (folder / "config.json").write_text(json.dumps(config))
    loaded = loaded_as_planned(folder)
    assert {t._params.threshold for t in loaded.values() if is_packed(t)} == {4.5}


def test_what_a_16_bit_folder_says_of_its_quantization_does_not_quantize_it(tmp_path, flux_model, flux_file):
    # diffusers leaves quantization_config behind when it dequantizes a model
    flux_model.save_pretrained(tmp_path / "flux")
    file = tmp_path / "flux" / "config.json"
    left_over = BY_DIFFUSERS["int8"].to_diffusers().to_dict()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": left_over}))
    require_same_tensors(loaded_as_planned(tmp_path / "flux"), loaded_as_planned(flux_file))


# size -----------------------------------------------------------------------------------------------------------------

DEV = FluxConfig(
    in_channels=64, out_channels=64, hidden_size=3072, num_heads=24, mlp_size=12288, context_in_dim=4096,
    vec_in_dim=768, depth=19, depth_single_blocks=38, guidance_embed=True,
)  # fmt: skip


def seconds_to_plan(path):
    """(seconds, source, bytes planned): the best of three, as other programs may run too."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        source = flux_source(open_checkpoint(path))
        planned = planned_nbytes(source)
        seconds.append(time.perf_counter() - start)
    return min(seconds), source, planned


def test_a_file_of_24_gb_is_identified_and_planned_from_its_header_in_under_a_second(tmp_path):
    path = tmp_path / "flux1-dev.safetensors"
    shapes = {name: torch.Size(shape) for name, shape in DEV.tensor_shapes().items()}
    write_sparse(path, {name: ("BF16", shape, 2 * shape.numel()) for name, shape in shapes.items()}, {})
    assert path.stat().st_size > 23.7e9
    seconds, source, planned = seconds_to_plan(path)
    assert source.model == DEV
    # half a byte a weight and a float32 for 64 of them; biases and norms stay as they are
    weights = sum(shape.numel() for shape in shapes.values() if len(shape) == 2)
    others = sum(2 * shape.numel() for shape in shapes.values() if len(shape) == 1)
    assert planned == weights * 9 // 16 + others
    assert seconds < 1


def test_a_packed_flux_of_full_size_is_planned_from_its_header_in_under_a_second(tmp_path):
    tensors, content = {}, {}
    for name, shape in DEV.tensor_shapes().items():
        numbers = torch.Size(shape).numel()
        if len(shape) == 1:
            tensors[name] = ("BF16", shape, 2 * numbers)
            continue
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(shape)}
        state_name, text = f"{name}.quant_state.bitsandbytes__nf4", json.dumps(state).encode()
        tensors[name] = ("U8", (numbers // 2, 1), numbers // 2)
        tensors[f"{name}.absmax"] = ("F32", (numbers // 64,), numbers // 16)
        tensors[f"{name}.quant_map"] = ("F32", (16,), 64)
        tensors[state_name] = ("U8", (len(text),), len(text))
        content[state_name] = text
    path = tmp_path / "flux1-dev-nf4.safetensors"
    write_sparse(
        path, prefixed_names("model.diffusion_model.", tensors), prefixed_names("model.diffusion_model.", content)
    )
    seconds, source, planned = seconds_to_plan(path)
    assert source.model == DEV
    assert source.is_packed
    assert planned == sum(
        size for name, (_, _, size) in tensors.items() if not name.endswith((".quant_map", "bitsandbytes__nf4"))
    )
    assert seconds < 1


def prefixed_names(prefix, values):
    return {prefix + name: value for name, value in values.items()}


# the table ------------------------------------------------------------------------------------------------------------


def test_every_row_of_the_table_of_formats_names_tests_that_exist():
    root = Path(__file__).parents[2]
    lines = (root / "docs" / "formats.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("|") and not re.fullmatch(r"[|\s:-]+", line)]
    # each table has a line of headings, which is followed by the ruled one
    headings = {lines[i - 1] for i, line in enumerate(lines) if re.fullmatch(r"[|\s:-]+", line) and "-" in line}
    rows = [row for row in rows if row not in headings]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(\w+\.py)::(test_\w+)`", row)
        assert named, f"names no test: {row}"
        for file, test in named:
            (path,) = (root / "tests").rglob(file)
            functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
            assert test in functions, f"{file} has no {test}"
