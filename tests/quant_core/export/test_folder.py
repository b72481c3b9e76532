"""Folders: diffusers and transformers load them to the same weights, bit for bit, and so do we."""

import dataclasses
import json
import logging

import diffusers
import pytest
import torch
import transformers
from format_files import values_of
from native_names import native_state_dict
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import ConfigError
from quantflux.quant_core.export import SaveError, provenance_of, save_diffusers_folder
from quantflux.quant_core.export.contents import also_skipped
from quantflux.quant_core.flux.names import NORMS, diffusers_parts
from quantflux.quant_core.layouts import dequantize, is_packed
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source, t5_source
from safetensors import safe_open
from small_models import random_flux, save_native_flux

PRECISIONS = [
    QuantConfig("nf4"),
    QuantConfig("fp4"),
    QuantConfig("nf4", double_quant=True),
    QuantConfig("int8"),
    QuantConfig("nf4", blocksize=32),
    QuantConfig("fp4", blocksize=512, double_quant=True),
]
SKIPPED = [
    QuantConfig("nf4", skip_modules=("img_in", "double_blocks.1.img_attn.qkv")),
    QuantConfig("nf4", double_quant=True, skip_modules=("final_layer.linear",)),
    QuantConfig("int8", skip_modules=("time_in", "single_blocks.1.linear1", "final_layer.adaLN_modulation.1")),
]
T5_SKIPPED = [QuantConfig("nf4", skip_modules=("wo",)), QuantConfig("int8", skip_modules=("encoder.block.1",))]


def described(config: QuantConfig) -> str:
    return " ".join([config.describe(), *config.skip_modules])


@pytest.mark.parametrize("config", PRECISIONS + SKIPPED + [QuantConfig("none")], ids=described)
def test_diffusers_loads_the_same_weights_and_packs_the_same_layers(loaded_flux, config, tmp_path, diffusers_on_cpu):
    tensors, provenance = loaded_flux(config)
    save_diffusers_folder(tmp_path / "saved", tensors, provenance, shard_size="1MB")
    theirs = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    require_same_values(native_state_dict(values_of(theirs)), tensors)

    # a skip list entry that kept another layer at 16 bit would give it packed bytes for weights
    modules = {m: is_packed(tensors[f"{m}.weight"]) for m in provenance.model.linear_shapes()}
    expected = {part for module, packed in modules.items() if not packed for part in diffusers_parts(module)}
    if "final_layer.linear" in config.skip_modules:
        expected |= {f"single_transformer_blocks.{i}.proj_out" for i in range(2)}
    assert plain_linears(theirs) == expected


def require_same_values(values, tensors):
    assert values.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(dequantize(values[name], torch.bfloat16), dequantize(tensor, torch.bfloat16)), name


def plain_linears(model: torch.nn.Module) -> set[str]:
    return {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module.weight.dtype.is_floating_point
    }


@pytest.mark.parametrize("config", PRECISIONS + SKIPPED, ids=described)
def test_we_load_the_same_weights(loaded_flux, config, tmp_path):
    tensors, provenance = loaded_flux(config)
    save_diffusers_folder(tmp_path / "saved", tensors, provenance, shard_size="1MB")
    source = flux_source(open_checkpoint(tmp_path / "saved"))
    assert not source.packed
    require_same_values(load(source), tensors)
    assert source.config.precision == config.precision
    assert source.config.int8_threshold == config.int8_threshold


@pytest.mark.parametrize("config", [QuantConfig("none"), QuantConfig("nf4", skip_modules=("*",))], ids=described)
@pytest.mark.parametrize("kind", ["flux", "t5"])
def test_a_folder_saved_with_nothing_packed_is_packed_only_where_a_config_says_so(kind, config, request, tmp_path):
    tensors, provenance = request.getfixturevalue(f"loaded_{kind}")(config)
    save_diffusers_folder(tmp_path / "saved", tensors, provenance, shard_size="1MB")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    open_source = {"flux": flux_source, "t5": t5_source}[kind]
    source = open_source(open_checkpoint(tmp_path / "saved"))
    assert not source.packed and source.describe() == "16-bit"
    require_same_values(load(source), tensors)
    assert open_source(open_checkpoint(tmp_path / "saved"), QuantConfig("fp4")).packed


def test_a_cut_through_a_block_leaves_the_layer_at_16_bit_and_is_logged(tmp_path, diffusers_on_cpu, caplog):
    # a block is 51.2 rows of 80
    model = random_flux(attention_head_dim=80, num_attention_heads=1, axes_dims_rope=(10, 35, 35))
    save_native_flux(model, tmp_path / "flux.safetensors")
    source = flux_source(open_checkpoint(tmp_path / "flux.safetensors"), QuantConfig("nf4", blocksize=4096))
    tensors = load(source)
    with caplog.at_level(logging.WARNING):
        save_diffusers_folder(tmp_path / "saved", tensors, provenance_of(source))
    assert "would cut their quantization blocks: double_blocks.0.img_attn.qkv" in caplog.text
    skipped = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
    assert "transformer_blocks.0.attn.to_q" in skipped["llm_int8_skip_modules"]
    theirs = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path / "saved", torch_dtype=torch.bfloat16)
    require_same_values(native_state_dict(values_of(theirs)), tensors)


def test_what_the_last_layer_takes_along_is_named(loaded_flux, tmp_path, caplog):
    tensors, provenance = loaded_flux(QuantConfig("nf4", skip_modules=("final_layer.linear",)))
    save_diffusers_folder(tmp_path / "saved", tensors, provenance)
    assert "single_transformer_blocks.0.proj_out, single_transformer_blocks.1.proj_out" in caplog.text


def test_no_other_layer_takes_any_along(loaded_flux):
    _, provenance = loaded_flux(QuantConfig("none"))
    parts = [part for module in provenance.model.linear_shapes() for part in diffusers_parts(module)]
    takes = {part: also_skipped([part], parts) for part in parts}
    assert [part for part, taken in takes.items() if taken] == ["proj_out"]


@pytest.mark.parametrize("shard_size", ["100KB", "1MB"])
def test_shards_hold_each_weight_with_its_statistics_and_the_index_names_all(loaded_flux, shard_size, tmp_path):
    tensors, provenance = loaded_flux(QuantConfig("nf4", double_quant=True))
    size = save_diffusers_folder(tmp_path / "saved", tensors, provenance, shard_size=shard_size)
    index = json.loads((tmp_path / "saved" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "saved").glob("*.safetensors"))
    assert len(files) > 2
    assert [file.name for file in files] == [
        f"diffusion_pytorch_model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
    ]
    held = {}
    for file in files:
        with safe_open(file, framework="pt") as opened:
            held |= {name: file.name for name in opened.keys()}
            assert "quantflux" in opened.metadata()
    assert index["weight_map"] == held
    for name, file in held.items():
        weight = name.partition(".weight.")[0] + ".weight" if ".weight." in name else name
        assert held[weight] == file
    assert size == sum(file.stat().st_size for file in (tmp_path / "saved").iterdir())


def test_one_shard_needs_no_index(loaded_flux, tmp_path):
    save_diffusers_folder(tmp_path / "saved", *loaded_flux(QuantConfig("nf4")))
    names = {file.name for file in (tmp_path / "saved").iterdir()}
    assert names == {"config.json", "diffusion_pytorch_model.safetensors"}


def test_the_config_is_that_of_the_model(loaded_flux, flux_model, tmp_path):
    save_diffusers_folder(tmp_path / "saved", *loaded_flux(QuantConfig("nf4")))
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert config.pop("quantization_config")["bnb_4bit_quant_type"] == "nf4"
    flux_model.save_pretrained(tmp_path / "theirs")
    theirs = json.loads((tmp_path / "theirs" / "config.json").read_text())
    # ours says how many channels come out; theirs leaves it open where they are those that go in
    assert config | {"out_channels": None} == theirs | {"out_channels": None}


@pytest.mark.parametrize("config", PRECISIONS + T5_SKIPPED + [QuantConfig("none")], ids=described)
def test_transformers_loads_the_same_t5(loaded_t5, config, tmp_path):
    tensors, provenance = loaded_t5(config)
    save_diffusers_folder(tmp_path / "saved", tensors, provenance, shard_size="100KB")
    theirs = transformers.T5EncoderModel.from_pretrained(tmp_path / "saved", dtype=torch.bfloat16, device_map="cpu")
    values = values_of(theirs)
    require_same_values({name: values[name] for name in tensors}, tensors)
    packed = {m for m in provenance.model.linear_shapes() if is_packed(tensors[f"{m}.weight"]) and m[-2:] != "wo"}
    assert plain_linears(theirs) == provenance.model.linear_shapes().keys() - packed


@pytest.mark.parametrize("config", PRECISIONS + T5_SKIPPED, ids=described)
def test_we_load_the_same_t5(loaded_t5, config, tmp_path, caplog):
    tensors, provenance = loaded_t5(config)
    save_diffusers_folder(tmp_path / "saved", tensors, provenance)
    assert ("wo layers of T5" in caplog.text) == (config.skip_modules != ("wo",))
    source = t5_source(open_checkpoint(tmp_path / "saved"))
    assert not source.packed
    require_same_values(load(source), tensors)


def test_sizes_that_diffusers_has_not_are_refused(loaded_flux, tmp_path):
    tensors, provenance = loaded_flux(QuantConfig("nf4"))
    narrow = dataclasses.replace(provenance, model=dataclasses.replace(provenance.model, mlp_size=512))
    with pytest.raises(ConfigError, match="512 channels"):
        save_diffusers_folder(tmp_path / "saved", tensors, narrow)


def test_a_folder_that_exists_is_left_alone(loaded_flux, tmp_path):
    (tmp_path / "saved").mkdir()
    with pytest.raises(SaveError, match="saved: exists already"):
        save_diffusers_folder(tmp_path / "saved", *loaded_flux(QuantConfig("nf4")))
    assert list((tmp_path / "saved").iterdir()) == []


def test_every_tensor_has_a_name_in_diffusers(flux_model):
    names = {name.rpartition(".")[0] for name in flux_model.state_dict()}
    native = native_state_dict(flux_model.state_dict())
    parts = {part for name in native for part in diffusers_parts(name.rpartition(".")[0])}
    norms = {template.format(i).rpartition(".")[0] for template in NORMS.values() for i in range(2)}
    assert parts | norms == names
