"""Packed FLUX in folders of diffusers."""

import json
import logging

import pytest
import torch
from format_files import (
    DIFFUSERS_WEIGHTS,
    change_tensors,
    flux_folder_by_diffusers,
    packed_4bit,
    shard,
)
from loading_formats import (
    BY_DIFFUSERS,
    NESTED,
    SUFFIXES,
    loaded_as_planned,
    packed_modules,
    require_same_tensors,
    require_values,
)
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.layouts import dequantize, plain_tensors
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source, t5_source
from safetensors.torch import load_file


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
