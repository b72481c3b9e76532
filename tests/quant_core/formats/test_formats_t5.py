"""Every kind of T5 file that people have, made by transformers, bitsandbytes and safetensors.

``docs/formats.md`` lists the kinds, what becomes of each, and the test that holds the loader to it.
"""

import json

import pytest
import torch
import transformers
from format_files import (
    TRANSFORMERS_WEIGHTS,
    as_float8,
    as_scaled_float8,
    pack_4bit,
    shard,
    t5_folder_by_transformers,
)
from loading_formats import NONE, loaded_as_planned, packed_modules, require_values
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.layouts import is_packed, plain_tensors
from quantflux.quant_core.source import t5_source
from safetensors.torch import load_file, save_file

BY_TRANSFORMERS = {
    "nf4": QuantConfig("nf4"),
    "fp4": QuantConfig("fp4"),
    "nf4 nested": QuantConfig("nf4", double_quant=True),
    "int8": QuantConfig("int8"),
}
SUFFIXES = {
    "nf4 nested": ("weight", "absmax", "quant_map", "nested_absmax", "nested_quant_map", "bitsandbytes__nf4"),
    "int8": ("weight", "SCB", "weight_format"),
}


@pytest.fixture(scope="module")
def encoder(t5_file):
    return load_file(t5_file)


@pytest.fixture(scope="module")
def linears(t5_model):
    return {name for name, module in t5_model.named_modules() if isinstance(module, torch.nn.Linear)}


@pytest.fixture(scope="module")
def folder_of_transformers(t5_model, tmp_path_factory):
    """Recipe -> (a folder that transformers packed, the values that it stands for by bitsandbytes)."""
    made = {}

    def make(config):
        if config not in made:
            folder = tmp_path_factory.mktemp("packed") / "text_encoder_2"
            values = t5_folder_by_transformers(t5_model, config, folder)
            values.pop("encoder.embed_tokens.weight", None)
            made[config] = folder, values
        return made[config]

    return make


def t5_as_planned(path, config=None) -> dict[str, torch.Tensor]:
    return loaded_as_planned(path, config, read=t5_source)


def require_same_packed_tensors(loaded, expected):
    assert packed_modules(loaded) == packed_modules(expected)
    for name in expected:
        for one, other in zip(plain_tensors(loaded[name]), plain_tensors(expected[name]), strict=True):
            assert torch.equal(one, other), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_16_or_32_bit_t5_file_is_read(tmp_path, encoder, linears, dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in encoder.items()}
    path = tmp_path / "t5.safetensors"
    save_file(tensors, path)
    require_values(t5_as_planned(path, NONE), tensors)
    packed = t5_as_planned(path)
    assert packed_modules(packed) == linears
    require_values(packed, pack_4bit(tensors, linears)[1])


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("kind", ["plain", "scale_weight", "weight_scale"])
def test_an_fp8_t5_file_stands_for_its_values_in_bfloat16(tmp_path, encoder, linears, kind, dtype):
    if kind == "plain":
        stored, values = as_float8(encoder, dtype)
    else:
        stored, values = as_scaled_float8(encoder, linears, kind, "()", dtype)
    path = tmp_path / "t5_fp8.safetensors"
    save_file(stored, path)
    require_values(t5_as_planned(path, NONE), values)
    require_values(t5_as_planned(path), pack_4bit(values, linears)[1])


@pytest.mark.parametrize("embedding", ["shared.weight", "encoder.embed_tokens.weight", "both"])
def test_only_the_encoder_of_a_whole_t5_is_read_whatever_its_embedding_is_called(tmp_path, t5_model, embedding):
    whole = transformers.T5ForConditionalGeneration(t5_model.config).to(torch.bfloat16)
    tensors = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    assert any(name.startswith("decoder.") for name in tensors)
    expected = {name: t for name, t in tensors.items() if name.startswith("encoder.") or name == "shared.weight"}
    expected.pop("encoder.embed_tokens.weight")
    if embedding != "both":
        for name in {"shared.weight", "encoder.embed_tokens.weight"} - {embedding}:
            del tensors[name]
    path = tmp_path / "whole_t5.safetensors"
    save_file(tensors, path)
    require_values(t5_as_planned(path, NONE), expected)


@pytest.mark.parametrize("max_shard_size", [None, "50KB"], ids=["single", "sharded"])
@pytest.mark.parametrize("config", [None, NONE], ids=["nf4", "16-bit"])
def test_a_16_bit_transformers_folder_is_the_same_model_as_the_single_file(
    tmp_path, t5_model, t5_file, max_shard_size, config
):
    folder = tmp_path / "text_encoder_2"
    t5_model.save_pretrained(folder, **({"max_shard_size": max_shard_size} if max_shard_size else {}))
    assert (len(list(folder.glob("*.safetensors"))) > 3) is bool(max_shard_size)
    loaded, expected = t5_as_planned(folder, config), t5_as_planned(t5_file, config)
    assert loaded.keys() == expected.keys()
    require_same_packed_tensors(loaded, expected)


@pytest.mark.parametrize("config", BY_TRANSFORMERS.values(), ids=BY_TRANSFORMERS)
def test_a_folder_that_transformers_packed_stays_as_it_is_with_wo_at_16_bit(
    folder_of_transformers, linears, t5_file, config
):
    folder, values = folder_of_transformers(config)
    loaded = t5_as_planned(folder)
    left = {name for name in linears if name.endswith(".wo")}
    assert left and packed_modules(loaded) == linears - left
    require_values(loaded, values)
    # the same as packing the 16-bit file while it is loaded, wo skipped; nested statistics too, as nothing is fused
    now = t5_as_planned(t5_file, QuantConfig(config.precision, double_quant=config.double_quant, skip_modules=("wo",)))
    require_same_packed_tensors(loaded, now)


@pytest.mark.parametrize("name", SUFFIXES)
def test_shards_of_a_packed_t5_may_part_weights_from_every_kind_of_their_statistics(tmp_path, t5_model, name):
    folder = tmp_path / "text_encoder_2"
    values = t5_folder_by_transformers(t5_model, BY_TRANSFORMERS[name], folder)
    values.pop("encoder.embed_tokens.weight", None)
    suffixes = SUFFIXES[name]
    number = shard(folder, lambda tensor: suffixes.index(tensor.rpartition(".")[2]), TRANSFORMERS_WEIGHTS)
    assert number == len(suffixes)
    require_values(t5_as_planned(folder), values)


@pytest.mark.parametrize("name", BY_TRANSFORMERS)
def test_shards_of_a_packed_t5_by_transformers_are_read(tmp_path, t5_model, folder_of_transformers, name):
    folder = tmp_path / "text_encoder_2"
    t5_folder_by_transformers(t5_model, BY_TRANSFORMERS[name], folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    require_values(t5_as_planned(folder), folder_of_transformers(BY_TRANSFORMERS[name])[1])


@pytest.mark.parametrize("name", BY_TRANSFORMERS)
def test_without_a_config_a_packed_t5_keeps_its_own_and_the_same_config_is_accepted(folder_of_transformers, name):
    config = BY_TRANSFORMERS[name]
    folder, values = folder_of_transformers(config)
    source = t5_source(open_checkpoint(folder))
    assert source.is_packed and not source.packed
    assert (source.config.precision, source.config.double_quant) == (config.precision, config.double_quant)
    require_values(t5_as_planned(folder, config), values)
    # wo is at 16 bit already
    require_values(
        t5_as_planned(folder, QuantConfig(config.precision, double_quant=config.double_quant, skip_modules=("wo",))),
        values,
    )


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("nf4", QuantConfig("fp4"), ("packed as nf4", "asks for fp4")),
        ("nf4", QuantConfig("nf4", blocksize=32), ("nf4 blocksize 64", "nf4 blocksize 32")),
        ("nf4", QuantConfig("nf4", double_quant=True), ("nf4 blocksize 64,", "nf4 double quant")),
        ("nf4 nested", QuantConfig("nf4"), ("nf4 blocksize 64 double quant", "asks for nf4.")),
        ("int8", NONE, ("packed as int8", "asks for 16-bit")),
        ("int8", QuantConfig("int8", skip_modules=("wi_0",)), ("wi_0 packed", "skip_modules")),
    ],
    ids=lambda value: value.describe() if isinstance(value, QuantConfig) else None,
)
def test_a_config_that_would_change_a_packed_t5_is_refused_with_what_disagrees(
    folder_of_transformers, name, asked, words
):
    folder, _ = folder_of_transformers(BY_TRANSFORMERS[name])
    with pytest.raises(CheckpointError) as error:
        t5_source(open_checkpoint(folder), asked)
    for word in ("text_encoder_2: ", *words, "Disconnect the config"):
        assert word in str(error.value)


def test_the_int8_threshold_in_a_packed_t5s_config_is_kept_and_another_one_is_accepted(tmp_path, t5_model):
    folder = tmp_path / "text_encoder_2"
    t5_folder_by_transformers(t5_model, QuantConfig("int8", int8_threshold=4.5), folder)
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["llm_int8_threshold"] == 4.5
    for config, threshold in ((None, 4.5), (QuantConfig("int8", int8_threshold=0.0), 0.0)):
        loaded = t5_as_planned(folder, config)
        assert {tensor._params.threshold for tensor in loaded.values() if is_packed(tensor)} == {threshold}
