"""What the combos of the loaders offer, in the host's own model folders."""

import asyncio
import json
import os
import shutil
import struct
import tracemalloc

import execution
import folder_paths
import pytest
import small_models
import torch
from comfy_execution.graph import DynamicPrompt
from quantflux.nodes.host.folders import CLIP_LS, FROM_HUB, T5S, TRANSFORMERS, chosen, chosen_fingerprint, names
from quantflux.nodes.load_t5 import QuantFluxLoadT5
from quantflux.nodes.load_transformer import QuantFluxLoadTransformer
from quantflux.quant_core.errors import ConfigError
from safetensors.torch import load_file, save_file


@pytest.fixture
def models(tmp_path, monkeypatch):
    """Empty model folders of a host: a function from a folder's key to its path."""
    for key in ("diffusion_models", "text_encoders", "checkpoints", "diffusers"):
        (tmp_path / key).mkdir()
        extensions = folder_paths.folder_names_and_paths[key][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, key, ([str(tmp_path / key)], extensions))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return tmp_path


@pytest.fixture
def pipeline(models):
    """A pipeline as diffusers lays it out, its transformer in several files."""
    folder = models / "diffusers" / "maker" / "FLUX-small"
    with torch.inference_mode(False):
        small_models.random_flux().save_pretrained(folder / "transformer", max_shard_size="1MB")
        small_models.random_t5(vocab_size=32128).save_pretrained(folder / "text_encoder_2")
        small_models.random_clip_l().save_pretrained(folder / "text_encoder")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    return folder


def test_with_nothing_there_only_the_hub_is_offered(models):
    assert names(TRANSFORMERS) == names(T5S) == [FROM_HUB]
    assert names(CLIP_LS, hub=False) == []


def test_a_pipeline_is_offered_once_and_gives_each_loader_its_part(pipeline):
    assert names(TRANSFORMERS) == names(T5S) == ["maker/FLUX-small", FROM_HUB]
    opened = chosen(TRANSFORMERS, "maker/FLUX-small")
    assert opened.path == str(pipeline / "transformer")
    assert len({info.file for info in opened.tensors.values()}) > 2
    assert chosen(T5S, "maker/FLUX-small").path == str(pipeline / "text_encoder_2")
    assert chosen(CLIP_LS, "maker/FLUX-small").path == str(pipeline / "text_encoder")


def test_a_model_folder_is_offered_in_place_of_its_files(models, flux_file):
    folder = models / "diffusion_models" / "flux folder"
    small_models.random_flux().save_pretrained(folder, max_shard_size="1MB")
    os.symlink(flux_file, models / "diffusion_models" / "flux.safetensors")
    assert names(TRANSFORMERS) == ["flux.safetensors", "flux folder", FROM_HUB]
    assert chosen(TRANSFORMERS, "flux folder").config["_class_name"] == "FluxTransformer2DModel"


def test_folders_of_other_models_are_not_offered(models):
    other = models / "diffusers" / "controlnet"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"_class_name": "FluxControlNetModel"}))
    broken = models / "diffusers" / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    assert names(TRANSFORMERS) == names(T5S) == [FROM_HUB]


def test_an_all_in_one_file_is_offered_for_what_it_holds(models, flux_file, text_files):
    whole = {f"model.diffusion_model.{name}": tensor for name, tensor in load_file(flux_file).items()}
    save_file(whole, models / "checkpoints" / "no_text.safetensors")
    whole |= {f"text_encoders.t5xxl.transformer.{n}": t for n, t in load_file(text_files / "t5.safetensors").items()}
    save_file(whole, models / "checkpoints" / "whole.safetensors")
    save_file({"input_blocks.0.0.weight": torch.zeros(1)}, models / "checkpoints" / "sdxl.safetensors")
    (models / "checkpoints" / "damaged.safetensors").write_bytes(b"\0" * 100)
    assert names(TRANSFORMERS) == ["no_text.safetensors", "whole.safetensors", FROM_HUB]
    assert names(T5S) == ["whole.safetensors", FROM_HUB]
    assert names(CLIP_LS) == [FROM_HUB]


def test_checkpoints_of_other_models_are_looked_at_once_and_their_headers_are_not_parsed(models):
    """A host starts with hundreds of them, and each kind of model asks for them all."""
    entry = {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]}
    # with a CLIP-L in it, as Stable Diffusion names it, that none of our loaders reads
    names_inside = ["conditioner.embedders.0.transformer." + CLIP_LS.kind.marker, *map(str, range(20_000))]
    header = json.dumps(dict.fromkeys(names_inside, entry)).encode()
    (models / "checkpoints" / "sdxl.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    peaks = []
    for offer in (TRANSFORMERS, T5S, CLIP_LS):
        tracemalloc.start()
        assert names(offer, hub=False) == []
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # parsed, a header takes many times its bytes
    assert peaks[0] < 4 * len(header)
    assert max(peaks[1:]) < len(header) / 4


def test_a_checkpoint_that_is_replaced_is_looked_at_again(models, flux_file):
    path = models / "checkpoints" / "model.safetensors"
    save_file({"input_blocks.0.0.weight": torch.zeros(1)}, path)
    assert names(TRANSFORMERS) == [FROM_HUB]
    os.replace(shutil.copy(flux_file, models / "new.safetensors"), path)
    assert names(TRANSFORMERS) == ["model.safetensors", FROM_HUB]
    content = path.read_bytes()
    path.write_bytes(content[:-1])  # its header still names a FLUX
    assert names(TRANSFORMERS) == [FROM_HUB]


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "gone.safetensors", "..", ""])
def test_a_name_that_is_not_listed_is_refused(models, flux_file, name):
    os.symlink(flux_file, models / "outside.safetensors")
    with pytest.raises(ConfigError, match="is in none of the host's folders for FLUX transformers"):
        chosen(TRANSFORMERS, name)


def test_choosing_the_hub_without_a_repository_says_what_is_missing(models):
    with pytest.raises(ConfigError, match="hub_repo is empty"):
        chosen(TRANSFORMERS, FROM_HUB)


def test_a_folder_with_a_link_to_nothing_has_a_fingerprint(pipeline):
    before = chosen_fingerprint(TRANSFORMERS, "maker/FLUX-small")
    (pipeline / "README.md").symlink_to(pipeline / "gone")
    assert chosen_fingerprint(TRANSFORMERS, "maker/FLUX-small") == before


def test_the_fingerprint_changes_with_any_file_of_a_folder(pipeline):
    before = chosen_fingerprint(TRANSFORMERS, "maker/FLUX-small")
    assert chosen_fingerprint(TRANSFORMERS, "maker/FLUX-small") == before
    shard = next((pipeline / "transformer").glob("*.safetensors"))
    os.utime(shard, ns=(1, 1))
    assert chosen_fingerprint(TRANSFORMERS, "maker/FLUX-small") != before
    assert chosen_fingerprint(TRANSFORMERS, "", "owner/name") == ("owner/name",)


LINK = ["1", 0]  # to another node, whose output the host does not have yet when it asks whether a node changed


@pytest.mark.parametrize(
    "node, inputs, constant",
    [
        (QuantFluxLoadTransformer, {"model_name": LINK}, ()),
        (QuantFluxLoadTransformer, {"model_name": FROM_HUB, "hub_repo": LINK}, ()),
        (QuantFluxLoadTransformer, {"model_name": LINK, "hub_repo": "owner/name", "config": LINK}, ("owner/name",)),
        (QuantFluxLoadT5, {"t5_name": LINK, "clip_l_name": LINK}, ((), ())),
        (QuantFluxLoadT5, {"t5_name": FROM_HUB, "clip_l_name": LINK, "hub_repo": LINK}, ((), ())),
    ],
)
def test_what_another_node_gives_reloads_nothing(models, monkeypatch, node, inputs, constant):
    schema = node.define_schema()
    monkeypatch.setitem(execution.nodes.NODE_CLASS_MAPPINGS, schema.node_id, node)
    prompt = {"2": {"class_type": schema.node_id, "inputs": inputs}}
    changed = execution.IsChangedCache("prompt", DynamicPrompt(prompt), None)
    assert asyncio.run(changed.get("2")) == [constant]
