"""Model folders whose config or index was written to lead elsewhere, or is no JSON at all."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.folder import is_plain_file_name

REPRODUCIBLE = settings(derandomize=True, database=None, deadline=None, max_examples=100)
INDEX = "diffusion_pytorch_model.safetensors.index.json"
SHARD = "diffusion_pytorch_model-00001.safetensors"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def sharded(forms, tmp_path):
    """(folder of one shard with its index, tensor -> shard)"""
    form = forms["diffusers nf4"]
    folder = tmp_path / "transformer"
    folder.mkdir()
    form.file.write(folder)
    (folder / form.file.name).rename(folder / SHARD)
    weight_map = dict.fromkeys(form.file.tensors, SHARD)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return folder, weight_map


def refused(folder, *words: str):
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(folder)
    for word in words:
        assert word in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        f"../{SHARD}", f"/tmp/{SHARD}", f"./{SHARD}", f"sub/{SHARD}", f"..\\{SHARD}", f"C:{SHARD}", f"C:\\{SHARD}",
        f"\\\\host\\share\\{SHARD}", "", ".", "..", ".safetensors", "..safetensors", f".{SHARD}", f"{SHARD}\0",
        f"\0{SHARD}", "a\0.safetensors", f"{SHARD}:stream", f"{SHARD}/", f"{SHARD}/.", "a\n.safetensors",
        "\u202ea.safetensors", "\u2028a.safetensors", "config.json", "x" * 10**5 + "/.safetensors", "~/a.safetensors",
    ],
)  # fmt: skip
def test_an_index_names_only_files_beside_it(sharded, tmp_path, name):
    folder, weight_map = sharded
    shutil.copy(folder / SHARD, tmp_path / SHARD)  # what the way out would lead to is there
    first = next(iter(weight_map))
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map | {first: name}}))
    assert not is_plain_file_name(name)
    assert len(refused(folder, INDEX, "no safetensors file beside it")) < 1000


@pytest.mark.parametrize("value", [None, 5, True, 1.5, [SHARD], {SHARD: SHARD}, [[[]]]], ids=str)
def test_an_index_that_names_a_file_by_no_text_is_refused(sharded, value):
    folder, weight_map = sharded
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map | {next(iter(weight_map)): value}}))
    refused(folder, INDEX)


@pytest.mark.parametrize(
    "name", ["nowhere.safetensors", "folder.safetensors", "\uff0fetc.safetensors", "é.safetensors"]
)
def test_a_shard_that_is_not_there_or_is_a_folder_is_named(sharded, name):
    folder, weight_map = sharded
    (folder / "folder.safetensors").mkdir()
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map | {next(iter(weight_map)): name}}))
    refused(folder, f"lacks the file {name}")


def test_a_snapshot_of_the_hubs_cache_made_of_links_is_read(forms, sharded, tmp_path):
    folder, _ = sharded
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0123" / "transformer"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(os.path.relpath(blobs / str(number), snapshot))
    linked = open_checkpoint(snapshot)
    assert linked.tensors.keys() == set(forms["diffusers nf4"].file.tensors)
    assert {info.file for info in linked.tensors.values()} == {str(snapshot / SHARD)}


def test_a_link_that_leads_nowhere_to_itself_or_to_a_device_is_refused(sharded):
    folder, _ = sharded
    for target in ("nowhere", SHARD, "/dev/zero"):
        (folder / SHARD).unlink()
        (folder / SHARD).symlink_to(target)
        refused(folder, SHARD)


@pytest.mark.parametrize("name", ["config.json", INDEX])
@pytest.mark.parametrize(
    "content",
    [
        b"", b"\xff\xfe\xff", b"{", b"[]", b"null", b"[" * 10**5, b'{"a":' * 10**5, b"{} {}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"weight_map": ' + b"[" * 900 + b"]" * 900 + b"}", b" " * (3 * 2**20) + b"{}",
    ],
    ids=["empty", "no UTF-8", "cut", "a list", "null", "deep list", "deep object", "two", "digits", "nested", "large"],
)  # fmt: skip
def test_a_config_or_index_that_is_no_usable_json_is_refused_by_its_name(sharded, name, content):
    folder, _ = sharded
    (folder / name).write_bytes(content)
    if name == "config.json" and content.startswith(b'{"weight_map'):
        # an object like any other, with a field that is not ours
        open_checkpoint(folder)
    else:
        refused(folder, name)


@pytest.mark.parametrize("name", ["config.json", INDEX, SHARD])
def test_a_folder_in_a_files_place_is_refused_by_its_name(sharded, name):
    folder, _ = sharded
    (folder / name).unlink()
    (folder / name).mkdir()
    refused(folder, name)


@REPRODUCIBLE
@given(index=st.fixed_dictionaries({"weight_map": JSON}) | JSON)
def test_any_index_is_refused(tmp_path_factory, index):
    folder = tmp_path_factory.getbasetemp() / "any_index"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / INDEX).write_text(json.dumps(index))
    refused(folder, INDEX)


@settings(REPRODUCIBLE, max_examples=30)
@given(
    quantization=st.dictionaries(
        st.sampled_from(
            [
                "quant_method", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_compute_dtype",
                "bnb_4bit_use_double_quant", "llm_int8_threshold", "llm_int8_skip_modules", "llm_int8_has_fp16_weight",
            ]
        ),
        JSON | st.sampled_from([10**400, "nf4", "float32"]),
    )
    | JSON
)  # fmt: skip
def test_any_config_is_refused_or_leaves_the_weights_what_they_are(forms, tmp_path_factory, quantization):
    form = forms["diffusers nf4"]
    folder = tmp_path_factory.getbasetemp() / "any_config"
    folder.mkdir(exist_ok=True)
    form.file.write(folder)
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    form.outcome(folder)


@pytest.mark.parametrize("where", ["a threshold of 400 digits in config.json", "deep JSON in a file's metadata"])
def test_a_description_of_the_quantization_that_cannot_be_a_number_or_is_too_deep_is_refused(forms, tmp_path, where):
    if "config.json" in where:
        form = forms["diffusers nf4"]
        path = form.file.write(tmp_path)
        wire = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 10**400}
        (tmp_path / "config.json").write_text(json.dumps({"quantization_config": wire}))
    else:
        form = forms["flux nf4"]
        changed = form.file.copy()
        changed.header["__metadata__"] = {"quantflux": "[" * 10**5}
        path = changed.write(tmp_path)
    assert form.outcome(path) == "refused"
