import logging
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest
import torch
from hub_server import file_of
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.errors import ConfigError
from quantflux.quant_core.hub import HubError
from quantflux.quant_core.identify import FLUX, T5, identify
from safetensors.torch import save

VAE = "decoder.up.0.block.0.conv1.weight"
CLIP_L = "text_model.encoder.layers.0.mlp.fc1.weight"
LORA = "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"


def finished_files(tmp_path) -> list[Path]:
    return [path for path in tmp_path.rglob("*.safetensors") if path.is_file()]


def test_the_transformer_is_told_from_a_vae_and_a_lora_by_its_header(hub, fetch):
    hub.add(
        "owner/name",
        {
            "a_flux_lora.safetensors": file_of(LORA),
            "ae.safetensors": file_of(VAE),
            "model.safetensors": file_of(FLUX.marker),
        },
    )
    path = fetch("owner/name")
    assert os.path.basename(path) == "model.safetensors"
    assert identify(open_checkpoint(path).tensors) is FLUX


def test_only_the_chosen_file_is_downloaded(hub, fetch, tmp_path):
    hub.add("owner/name", {"ae.safetensors": file_of(VAE), "model.safetensors": file_of(FLUX.marker)})
    fetch("owner/name")
    assert [path.name for path in finished_files(tmp_path)] == ["model.safetensors"]


def test_a_16_bit_t5_is_preferred_to_one_in_float8(hub, fetch):
    hub.add(
        "owner/encoders",
        {
            "clip_l.safetensors": file_of(CLIP_L),
            "t5_a_fp8.safetensors": file_of(T5.marker, torch.float8_e4m3fn),
            "t5_fp16.safetensors": file_of(T5.marker, torch.float16),
        },
    )
    assert os.path.basename(fetch("owner/encoders", T5)) == "t5_fp16.safetensors"


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        ({"a": torch.float32, "b": torch.float16, "c": torch.bfloat16}, "c"),
        ({"a": torch.float32, "b": torch.float16}, "b"),
        ({"b": torch.bfloat16, "a": torch.bfloat16}, "a"),
    ],
)
def test_bfloat16_goes_before_float16_before_float32_and_then_the_name(hub, fetch, dtypes, expected):
    hub.add("owner/name", {f"{name}.safetensors": file_of(FLUX.marker, dtype) for name, dtype in dtypes.items()})
    assert os.path.basename(fetch("owner/name")) == f"{expected}.safetensors"


def test_a_long_header_is_read_whole(hub, fetch):
    tensors = {f"filler.{i:05}.{'x' * 60}": torch.zeros(1) for i in range(1500)}
    hub.add("owner/name", {"model.safetensors": save({**tensors, FLUX.marker: torch.zeros(1, dtype=torch.bfloat16)})})
    assert fetch("owner/name").endswith("model.safetensors")


def test_a_file_that_is_no_safetensors_does_not_hinder_the_choice(hub, fetch):
    hub.add("owner/name", {"a.safetensors": b"PK\x03\x04 no header", "model.safetensors": file_of(FLUX.marker)})
    assert fetch("owner/name").endswith("model.safetensors")


@pytest.mark.parametrize("revision", ["v2", "refs/pr/1", hub_server.commit_of("owner/name", "v2")])
def test_the_revision_after_the_at_sign_is_taken(hub, fetch, revision):
    hub.add("owner/name", {"old.safetensors": file_of(FLUX.marker)})
    hub.add("owner/name", {"new.safetensors": file_of(FLUX.marker)}, revision="v2")
    hub.add("owner/name", {"new.safetensors": file_of(FLUX.marker)}, revision="refs/pr/1")
    assert os.path.basename(fetch(f"owner/name@{revision}")) == "new.safetensors"
    assert os.path.basename(fetch("owner/name")) == "old.safetensors"


def test_the_second_call_downloads_nothing(hub, fetch):
    hub.add("owner/name", {"model.safetensors": file_of(FLUX.marker, size=200_000)})
    first = fetch("owner/name")
    hub.bytes_sent = 0
    assert fetch("owner/name") == first
    # the listing and the first 100 kB, which hold the header
    assert hub.bytes_sent < 110_000


def test_environment_variables_name_the_hub_and_its_cache_and_offline_mode_reads_that_cache(hub, tmp_path):
    hub.add("owner/name", {"ae.safetensors": file_of(VAE), "model.safetensors": file_of(FLUX.marker)})
    code = (
        "from quantflux.quant_core.hub import hub_path\n"
        "from quantflux.quant_core.identify import FLUX\n"
        "import sys; sys.stdout.write(hub_path('owner/name', FLUX))"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
    }

    def run(**extra):
        return subprocess.run(
            [sys.executable, "-c", code], env={**environment, **extra}, cwd=tmp_path, capture_output=True, text=True
        )

    online = run()
    assert Path(online.stdout).is_relative_to(tmp_path / "hub"), online.stderr
    hub.requests.clear()
    assert run(HF_HUB_OFFLINE="1").stdout == online.stdout
    assert hub.requests == []


def test_without_network_the_same_rule_picks_from_the_cache(hub, fetch, caplog):
    files = {"a.safetensors": file_of(FLUX.marker, torch.float32)}
    hub.add("owner/name", files)
    fetch("owner/name")
    files["b.safetensors"] = file_of(FLUX.marker, torch.bfloat16)
    chosen = fetch("owner/name")
    with caplog.at_level(logging.WARNING):
        assert fetch("owner/name", endpoint=hub_server.NOWHERE) == chosen
    assert "b.safetensors from the cache" in caplog.text


def test_a_hub_that_is_down_is_as_good_as_none(hub, fetch):
    hub.add("owner/name", {"model.safetensors": file_of(FLUX.marker)})
    path = fetch("owner/name")
    hub.failing = {"GET": 503, "HEAD": 503}
    assert fetch("owner/name") == path


def test_a_cache_with_some_of_a_listed_snapshots_files_will_do(hub, fetch, tmp_path):
    hub.add("owner/name", {"model.safetensors": file_of(FLUX.marker), "transformer/part.safetensors": file_of(VAE)})
    path = fetch("owner/name")
    tree = pytest.importorskip("huggingface_hub._tree_cache")
    entry = tree.TreeCacheEntry(size=1, blob_id="0", lfs_sha256=None, lfs_size=None, xet_hash=None)
    commit = hub_server.commit_of("owner/name", "main")
    folder = tmp_path / "cache" / "models--owner--name"
    tree.write_tree_cache(folder, commit, {"model.safetensors": entry, "transformer/part.safetensors": entry})
    assert fetch("owner/name", endpoint=hub_server.NOWHERE) == path


def test_without_network_and_cache_both_are_named(fetch):
    with pytest.raises(HubError, match=r"^owner/name: has no FLUX .* cache .*the Hub cannot be reached"):
        fetch("owner/name", endpoint=hub_server.NOWHERE)


def test_offline_mode_without_cache_says_how_to_leave_it(fetch, monkeypatch):
    hub_server.set_offline(monkeypatch, True)
    with pytest.raises(HubError, match="offline mode is on. Unset HF_HUB_OFFLINE"):
        fetch("owner/name")


def test_a_gated_repository_names_its_page_and_the_login_and_no_token(hub, fetch, monkeypatch, caplog):
    hub.add("owner/gated", {"model.safetensors": file_of(FLUX.marker)}, gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with caplog.at_level(logging.DEBUG), pytest.raises(HubError) as error:
        fetch("owner/gated")
    assert str(error.value).startswith("owner/gated: is gated")
    assert "https://huggingface.co/owner/gated" in str(error.value)
    assert "hf auth login" in str(error.value) and "HF_TOKEN" in str(error.value)
    assert "hf_secret" not in str(error.value) + caplog.text


def test_the_users_token_opens_a_gated_repository(hub, fetch, monkeypatch):
    hub.add("owner/gated", {"model.safetensors": file_of(FLUX.marker)}, gated=True)
    monkeypatch.setenv("HF_TOKEN", hub.granted)
    assert fetch("owner/gated").endswith("model.safetensors")


def test_a_missing_repository_is_named(fetch):
    with pytest.raises(HubError, match="^owner/nothing: does not exist, or is private. Check the name"):
        fetch("owner/nothing")


def test_a_token_that_is_refused_is_told_how_to_be_renewed(hub, fetch):
    hub.add("owner/name", {"model.safetensors": file_of(FLUX.marker)})
    hub.failing = {"GET": 403}
    with pytest.raises(HubError, match="^owner/name: is refused to your token .HTTP 403.*hf auth login"):
        fetch("owner/name")


def test_a_missing_revision_is_named(hub, fetch):
    hub.add("owner/name", {"model.safetensors": file_of(FLUX.marker)})
    with pytest.raises(HubError, match="^owner/name@v9: has no revision v9"):
        fetch("owner/name@v9")


def test_a_repository_without_the_kind_says_what_it_has_and_what_to_name(hub, fetch):
    hub.add(
        "owner/name",
        {"ae.safetensors": file_of(VAE), "t5-00001-of-00002.safetensors": b"", "odd.safetensors": file_of("x")},
    )
    with pytest.raises(HubError, match="^owner/name: has no T5 text encoder that can be loaded") as error:
        fetch("owner/name", T5)
    for part in ("ae.safetensors (a VAE)", "t5-00001-of-00002.safetensors (one part of several)", "(unknown)"):
        assert part in str(error.value)
    assert "text_encoder_2/config.json" in str(error.value) and "owner/name/path/inside" in str(error.value)


def test_a_repository_of_pickles_says_why_they_are_not_read(hub, fetch):
    hub.add("owner/name", {"flux.ckpt": b"PK", "pytorch_model.bin": b"PK"})
    with pytest.raises(HubError, match=r"flux.ckpt, pytorch_model.bin.*Pickles can run code.*\.safetensors"):
        fetch("owner/name")
    assert hub.downloads() == []


@pytest.mark.parametrize(
    "hub_repo",
    [
        "",
        "name",
        "/name",
        "owner/",
        "a//c",
        "a/b/",
        "a/b//c.safetensors",
        "a/b/../c.safetensors",
        "a/b/./c",
        "a/b/c\\..\\d",
        "a/b/C:/d",
        "a/b/c\n",
        "a/b/ c",
        "/etc/passwd",
        "../name",
        "owner/..",
        "owner/name\n",
        "owner--x/name",
        "https://huggingface.co/owner/name",
        "owner/name@",
        "owner/name@../../main",
        "owner/name@a/../b",
        "owner/name@/etc",
        "owner/name@.hidden",
        "owner/name@a\\b",
        "owner/name@C:b",
        "owner/name@a b",
        "owner/name@a@b",
    ],
)
def test_a_malformed_name_is_refused_with_the_form(hub, fetch, tmp_path, hub_repo):
    with pytest.raises(ConfigError, match="owner/name or owner/name@revision"):
        fetch(hub_repo)
    assert hub.requests == [] and list(tmp_path.iterdir()) == []


def test_a_hub_that_fails_between_the_listing_and_the_file_is_named(hub, fetch):
    hub.add("owner/name", {"model.safetensors": file_of(FLUX.marker)})
    # 501 is not one of those that are asked again after a while
    hub.failing = {"HEAD": 501}
    with pytest.raises(HubError, match="^owner/name: model.safetensors could not be downloaded"):
        fetch("owner/name")
