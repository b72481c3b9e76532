"""Uploads, against a server that speaks the Hub's own protocol."""

import dataclasses
import inspect
import json
import socket

import huggingface_hub.constants
import pytest
from hub_upload_server import running_upload_hub
from huggingface_hub import ModelCard
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.export import push_to_hub, save_diffusers_folder
from quantflux.quant_core.export.card import model_card
from quantflux.quant_core.hub import HubError

REPO = "owner/flux-nf4"


@pytest.fixture(scope="module")
def folder(loaded_flux, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "flux"
    save_diffusers_folder(path, *loaded_flux(QuantConfig("nf4", skip_modules=("img_in",))), shard_size="2MB")
    return path


@pytest.fixture
def hub(monkeypatch):
    # read once, when huggingface_hub is imported
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_upload_hub() as running:
        monkeypatch.setenv("HF_TOKEN", running.token)
        yield running


def test_the_config_comes_first_then_the_weights_then_the_card(hub, folder):
    url = push_to_hub(folder, REPO, commit_message="Weights of today", endpoint=hub.url)
    config, weights, card = hub.commits
    assert list(config.files) == ["config.json"]
    assert set(weights.files) == {file.name for file in folder.iterdir()} - {"config.json"}
    assert weights.message == "Weights of today"
    assert list(card.files) == ["README.md"]
    assert url.startswith(f"{hub.url}/{REPO}/commit/")
    uploaded = hub.branches[REPO]["main"]
    assert {name: data for name, data in uploaded.items() if name != "README.md"} == {
        file.name: file.read_bytes() for file in folder.iterdir()
    }
    assert len(hub.uploads) >= 2  # the shards went by LFS
    assert not hub.private[REPO]


def test_private_and_revision_are_passed_on(hub, folder):
    push_to_hub(folder, REPO, private=True, revision="nf4", endpoint=hub.url)
    assert hub.private[REPO]
    assert {commit.revision for commit in hub.commits} == {"nf4"}
    assert hub.branches[REPO]["main"] == {}
    assert 'revision="nf4"' in hub.branches[REPO]["nf4"]["README.md"].decode()


def test_uploading_again_sends_no_weights_and_leaves_the_card_alone(hub, folder):
    push_to_hub(folder, REPO, endpoint=hub.url)
    hub.branches[REPO]["main"]["README.md"] = b"---\nlicense: other\n---\nWritten by hand."
    sent = len(hub.uploads)
    push_to_hub(folder, REPO, endpoint=hub.url)
    assert len(hub.uploads) == sent
    assert hub.branches[REPO]["main"]["README.md"].endswith(b"Written by hand.")


STEM = "diffusion_pytorch_model"
BEFORE = {
    "one file": [f"{STEM}.safetensors"],
    "more shards": [f"{STEM}.safetensors.index.json", *(f"{STEM}-0000{i}-of-00009.safetensors" for i in range(1, 10))],
}
OTHERS = [
    "README.md", "samples/diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors",
    "model.safetensors", "model.safetensors.index.json", "pytorch_lora_weights.safetensors",
]  # fmt: skip


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("revision", [None, "v2"])
def test_weights_of_an_earlier_upload_go_with_the_commit_of_the_new_ones(hub, folder, before, revision):
    hub.branches[REPO] = {"main": dict.fromkeys([*OTHERS, *before], b"before")}
    push_to_hub(folder, REPO, revision=revision, endpoint=hub.url)
    config, weights = hub.commits
    new = {file.name for file in folder.iterdir()}
    assert hub.branches[REPO][revision or "main"].keys() == new | set(OTHERS)
    assert config.deleted == [] and set(weights.deleted) == set(before) - new


def test_shards_and_their_index_go_when_the_new_weights_are_one_file(hub, loaded_flux, tmp_path):
    push_to_hub(saved(loaded_flux, tmp_path / "shards", "2MB"), REPO, endpoint=hub.url)
    push_to_hub(saved(loaded_flux, tmp_path / "whole", "5GB"), REPO, endpoint=hub.url)
    assert hub.branches[REPO]["main"].keys() == {"README.md", "config.json", f"{STEM}.safetensors"}


def saved(loaded_flux, path, shard_size):
    save_diffusers_folder(path, *loaded_flux(QuantConfig("nf4")), shard_size=shard_size)
    return path


def test_an_upload_that_broke_off_has_left_the_config_and_goes_on(hub, folder):
    hub.failing["lfs_put"] = 400
    with pytest.raises(HubError, match="the upload broke off .HTTP 400.*upload again"):
        push_to_hub(folder, REPO, endpoint=hub.url)
    assert list(hub.branches[REPO]["main"]) == ["config.json"]
    hub.failing.clear()
    push_to_hub(folder, REPO, endpoint=hub.url)
    assert "README.md" in hub.branches[REPO]["main"]


def test_without_a_token_nothing_is_asked_of_the_hub(hub, folder, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no_tokens"))
    with pytest.raises(HubError, match=f"{REPO}: nothing was uploaded: there is no token.*hf auth login"):
        push_to_hub(folder, REPO, endpoint=hub.url)
    assert hub.branches == {}


@pytest.mark.parametrize("repo_id", ["owner/flux", "somebody/flux"])
def test_a_token_that_may_not_write_is_told_so(hub, folder, monkeypatch, repo_id):
    if repo_id == "owner/flux":
        monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(HubError, match=f"{repo_id}: .*your token.*hf auth login") as caught:
        push_to_hub(folder, repo_id, endpoint=hub.url)
    assert "hf_other" not in str(caught.value)
    assert hub.commits == []


def test_no_network_is_told_so(hub, folder):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://user:secret@127.0.0.1:{unused.getsockname()[1]}"
    with pytest.raises(HubError, match="Check the network and HF_ENDPOINT") as caught:
        push_to_hub(folder, REPO, endpoint=address)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("repo_id", ["../flux", "a/b/c", "-flux", ""])
def test_a_name_that_is_none_is_refused(hub, folder, repo_id):
    with pytest.raises(HubError, match="Write it as owner/name"):
        push_to_hub(folder, repo_id, endpoint=hub.url)
    assert hub.branches == {}


def test_a_folder_without_a_model_is_refused_before_anything_is_sent(hub, tmp_path):
    with pytest.raises(CheckpointError):
        push_to_hub(tmp_path, REPO, endpoint=hub.url)
    assert hub.branches == {}


def test_no_argument_takes_a_token():
    assert not any("token" in name for name in inspect.signature(push_to_hub).parameters)


def test_the_card_of_a_transformer(folder):
    card = model_card(str(folder), REPO)
    assert card.data.library_name == "diffusers"
    assert {"bitsandbytes", "text-to-image"} <= set(card.data.tags)
    assert card.data.base_model is None
    assert f'FluxTransformer2DModel.from_pretrained("{REPO}"' in card.text
    assert f"hf download {REPO} --local-dir ComfyUI/models/diffusion_models/flux-nf4" in card.text
    assert "`flux.safetensors`" in card.text and "| precision | nf4 |" in card.text and "`x_embedder`" in card.text
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_the_card_of_a_t5(loaded_t5, tmp_path):
    save_diffusers_folder(tmp_path / "t5", *loaded_t5(QuantConfig("int8", int8_threshold=2.0)))
    card = model_card(str(tmp_path / "t5"), "owner/t5")
    assert card.data.library_name == "transformers"
    assert 'T5EncoderModel.from_pretrained("owner/t5"' in card.text
    assert "| LLM.int8() threshold | 2 |" in card.text


def test_the_card_names_the_repository_that_the_model_came_from(loaded_flux, tmp_path):
    tensors, provenance = loaded_flux(QuantConfig("nf4"))
    from_hub = dataclasses.replace(provenance, base_model="black-forest-labs/FLUX.1-dev")
    save_diffusers_folder(tmp_path / "saved", tensors, from_hub)
    card = model_card(str(tmp_path / "saved"), REPO)
    assert card.data.base_model == "black-forest-labs/FLUX.1-dev"
    assert json.loads(json.dumps(card.data.to_dict()))["base_model_relation"] == "quantized"
