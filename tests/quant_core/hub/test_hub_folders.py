"""Model folders of diffusers and transformers on the Hub, and incomplete ones in its cache."""

import json
import os
from pathlib import Path

import hub_server
import pytest
from hub_server import NOWHERE, file_of, folder_of
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.folder import LARGEST_JSON
from quantflux.quant_core.hub import HubError
from quantflux.quant_core.identify import FLUX, T5

TRANSFORMER = {"_class_name": "FluxTransformer2DModel"}
ENCODER = {"architectures": ["T5EncoderModel"], "model_type": "t5"}
WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = "transformer/diffusion_pytorch_model.safetensors.index.json"
FIRST = "transformer/diffusion_pytorch_model-00001-of-00003.safetensors"
LAST = "transformer/diffusion_pytorch_model-00003-of-00003.safetensors"


def pipeline() -> dict[str, bytes]:
    return {
        "model_index.json": b"{}",
        "README.md": b"",
        **folder_of(TRANSFORMER, WEIGHTS, 3, path="transformer"),
        **folder_of(ENCODER, "model.safetensors", 2, path="text_encoder_2"),
        **folder_of({"model_type": "clip_text_model"}, "model.safetensors", path="text_encoder"),
        **folder_of({"_class_name": "AutoencoderKL"}, WEIGHTS, path="vae"),
    }


def indexing(*names) -> bytes:
    return json.dumps({"weight_map": {f"part.{i}": name for i, name in enumerate(names)}}).encode()


@pytest.mark.parametrize(("wanted", "component", "shards"), [(FLUX, "transformer", 3), (T5, "text_encoder_2", 2)])
def test_of_a_pipeline_the_folder_of_the_kind_is_downloaded_whole_and_nothing_else(
    hub, fetch, wanted, component, shards
):
    files = pipeline()
    files[f"{component}/pytorch_model.bin"] = b"pickle"
    files[f"{component}/model.fp16.safetensors"] = file_of("another.variant")
    hub.add("owner/name", files)
    path = fetch("owner/name", wanted)
    assert os.path.basename(path) == component
    expected = [n for n in files if n.startswith(f"{component}/") and not n.endswith((".bin", ".fp16.safetensors"))]
    assert sorted(hub.downloads()) == sorted(expected)
    checkpoint = open_checkpoint(path)
    assert len({tensor.file for tensor in checkpoint.tensors.values()}) == shards
    assert {Path(tensor.file).parent for tensor in checkpoint.tensors.values()} == {Path(path)}


@pytest.mark.parametrize(
    ("wanted", "config", "weights"),
    [
        (FLUX, TRANSFORMER, WEIGHTS),
        (T5, ENCODER, "model.safetensors"),
        (T5, {"architectures": ["T5EncoderModel"]}, "model.safetensors"),
        (T5, {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "model.safetensors"),
    ],
)
@pytest.mark.parametrize("shards", [0, 2])
def test_a_repository_may_itself_be_the_model_folder(hub, fetch, wanted, config, weights, shards):
    hub.add("owner/name", folder_of(config, weights, shards) | {"ae.safetensors": file_of("decoder.up.0.x")})
    path = fetch("owner/name", wanted)
    assert sorted(os.listdir(path)) == sorted({os.path.basename(n) for n in hub.downloads()} - {"ae.safetensors"})
    assert open_checkpoint(path).config == config


def test_the_weights_of_a_folder_may_be_a_variant(hub, fetch):
    hub.add("owner/name", folder_of(TRANSFORMER, "diffusion_pytorch_model.bf16.safetensors", path="transformer"))
    assert os.listdir(fetch("owner/name")).count("diffusion_pytorch_model.bf16.safetensors") == 1


def test_all_files_are_of_one_commit_even_if_the_branch_moves_on_meanwhile(hub, fetch):
    hub.add("owner/name", pipeline(), revision="old")
    hub.add("owner/name", pipeline(), revision="new")
    hub.move("owner/name", "main", to="old")
    hub.on_request = lambda path: hub.move("owner/name", "main", to="new") if path.endswith(FIRST) else None
    path = fetch("owner/name")
    assert Path(path).parent.name == hub_server.commit_of("owner/name", "old")
    assert len(open_checkpoint(path).tensors) == 3


def test_the_revision_holds_for_folders_too(hub, fetch):
    hub.add("owner/name", {"README.md": b""})
    hub.add("owner/name", pipeline(), revision="refs/pr/1")
    assert Path(fetch("owner/name@refs/pr/1")).parent.name == hub_server.commit_of("owner/name", "refs/pr/1")


@pytest.mark.parametrize(
    "shard",
    [
        "../../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:model.safetensors",
        "model.bin",
        ".safetensors",
        "a\nb.safetensors",
        "",
        7,
        None,
        ["a.safetensors"],
    ],
)
def test_an_index_that_names_anything_but_files_beside_it_is_refused(hub, fetch, shard):
    hub.add("owner/name", pipeline() | {INDEX: indexing(os.path.basename(FIRST), shard)})
    with pytest.raises(HubError, match=f"^owner/name: {INDEX} names .* no .safetensors file beside it"):
        fetch("owner/name")
    assert not any(name.endswith(".safetensors") for name in hub.downloads())


@pytest.mark.parametrize(
    "content", [b"no json", b"[]", b"{}", b'{"weight_map": {}}', b'{"weight_map": [1]}', b"[" * 9999]
)
def test_an_unusable_index_is_named(hub, fetch, content):
    hub.add("owner/name", pipeline() | {INDEX: content})
    with pytest.raises(HubError, match=f"^owner/name: {INDEX} "):
        fetch("owner/name")


@pytest.mark.parametrize("lists_sizes", [True, False])
def test_an_index_of_absurd_size_is_refused_before_it_is_downloaded(hub, fetch, lists_sizes):
    hub.lists_sizes = lists_sizes
    hub.add("owner/name", pipeline() | {INDEX: bytes(LARGEST_JSON + 1)})
    with pytest.raises(HubError, match=f"{INDEX} has 2097153 bytes"):
        fetch("owner/name")
    assert INDEX not in hub.downloads()


def test_a_config_that_is_no_json_is_named(hub, fetch):
    hub.add("owner/name", pipeline() | {"transformer/config.json": b"{"})
    with pytest.raises(HubError, match="^owner/name: transformer/config.json is no usable JSON"):
        fetch("owner/name")


def test_a_shard_that_the_repository_lacks_is_named(hub, fetch):
    files = pipeline()
    del files[LAST]
    hub.add("owner/name", files)
    with pytest.raises(HubError, match=f"transformer/ lacks {os.path.basename(LAST)}, which {INDEX} names"):
        fetch("owner/name")


def test_a_folder_of_pickles_says_why_they_are_not_read(hub, fetch):
    files = folder_of(ENCODER, "pytorch_model.bin", path="text_encoder_2")
    hub.add("owner/name", files)
    with pytest.raises(
        HubError, match=r"text_encoder_2/ has its weights only as pickles \(pytorch_model.bin.*run code"
    ):
        fetch("owner/name", T5)
    assert hub.downloads() == ["text_encoder_2/config.json"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "SD3Transformer2DModel"}, "transformer/config.json is that of 'SD3Transformer2DModel'"),
        (TRANSFORMER | {"quantization_config": {"quant_method": "torchao"}}, "transformer/ is packed by 'torchao'"),
        (TRANSFORMER | {"quantization_config": 8}, "transformer/ is packed by 8"),
    ],
)
def test_a_folder_of_another_sort_is_said_to_be_so(hub, fetch, config, message):
    hub.add("owner/name", folder_of(config, WEIGHTS, path="transformer"))
    with pytest.raises(HubError, match=message):
        fetch("owner/name")
    assert hub.downloads() == ["transformer/config.json"]


def test_files_that_no_index_joins_are_named(hub, fetch):
    files = folder_of(TRANSFORMER, "a.safetensors", path="transformer")
    hub.add("owner/name", files | {"transformer/b.safetensors": file_of("x")})
    with pytest.raises(HubError, match="no index joins the files a.safetensors, b.safetensors of transformer/"):
        fetch("owner/name")


def test_a_gated_pipeline_names_its_page(hub, fetch):
    hub.add("owner/gated", pipeline(), gated=True)
    with pytest.raises(HubError, match="is gated.*https://huggingface.co/owner/gated"):
        fetch("owner/gated")


def test_the_second_call_downloads_no_weights(hub, fetch):
    hub.add("owner/name", pipeline())
    first = fetch("owner/name")
    hub.requests.clear()
    assert fetch("owner/name") == first
    assert hub.downloads() == []


@pytest.mark.parametrize("offline", [False, True])
def test_without_the_hub_the_folder_is_taken_from_the_cache(hub, fetch, monkeypatch, offline):
    hub.add("owner/name", pipeline())
    paths = [fetch("owner/name"), fetch("owner/name", T5)]
    hub_server.set_offline(monkeypatch, offline)
    hub.requests.clear()
    endpoint = hub.url if offline else NOWHERE
    assert [fetch("owner/name", endpoint=endpoint), fetch("owner/name", T5, endpoint=endpoint)] == paths
    assert hub.requests == []


def test_a_folder_of_which_the_cache_lacks_a_shard_is_not_taken_and_the_shard_is_named(hub, fetch):
    hub.add("owner/name", pipeline())
    hub.refused = {LAST: 404}
    with pytest.raises(HubError, match=f"^owner/name: {LAST} could not be downloaded .HTTP 404"):
        fetch("owner/name")
    with pytest.raises(HubError) as error:
        fetch("owner/name", endpoint=NOWHERE)
    for part in (f"lacks {os.path.basename(LAST)}", "cache", "the Hub cannot be reached", "try again"):
        assert part in str(error.value)
    hub.refused = {}
    path = fetch("owner/name")
    assert fetch("owner/name", endpoint=NOWHERE) == path


def test_a_link_without_its_file_counts_as_missing(hub, fetch):
    hub.add("owner/name", pipeline())
    path = fetch("owner/name")
    lost = Path(path) / os.path.basename(FIRST)
    (lost.resolve() if lost.is_symlink() else lost).unlink()
    with pytest.raises(HubError, match=f"lacks {os.path.basename(FIRST)}"):
        fetch("owner/name", endpoint=NOWHERE)
    assert fetch("owner/name") == path and lost.is_file()
