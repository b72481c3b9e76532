import logging
import os
import subprocess
import sys
from pathlib import Path

import hub_server
import huggingface_hub
import pytest
import torch
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.errors import ConfigError
from quantflux.quant_core.hub import HubError, hub_file
from quantflux.quant_core.identify import FLUX, T5, identify
from safetensors.torch import save

NOWHERE = "http://127.0.0.1:1"
VAE = "decoder.up.0.block.0.conv1.weight"
CLIP_L = "text_model.encoder.layers.0.mlp.fc1.weight"
LORA = "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"


def file(marker: str, dtype=torch.bfloat16, size: int = 8) -> bytes:
    return save({marker: torch.zeros(size, dtype=dtype), "other.weight": torch.zeros(1)})


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    """Whatever the machine's own Hub settings are, tests see none, and the local server needs no proxy."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def hub():
    with hub_server.running_hub() as running:
        yield running


@pytest.fixture
def fetch(hub, tmp_path):
    """``hub_file`` against the local Hub and an empty cache."""

    def call(hub_repo, wanted=FLUX, progress=None, endpoint=None):
        return hub_file(hub_repo, wanted, progress, endpoint=endpoint or hub.url, cache_dir=str(tmp_path / "cache"))

    return call


def finished_files(tmp_path) -> list[Path]:
    return [path for path in tmp_path.rglob("*.safetensors") if path.is_file()]


def test_the_transformer_is_told_from_a_vae_and_a_lora_by_its_header(hub, fetch):
    hub.add(
        "owner/name",
        {"a_flux_lora.safetensors": file(LORA), "ae.safetensors": file(VAE), "model.safetensors": file(FLUX.marker)},
    )
    path = fetch("owner/name")
    assert os.path.basename(path) == "model.safetensors"
    assert identify(open_checkpoint(path).tensors) is FLUX


def test_only_the_chosen_file_is_downloaded(hub, fetch, tmp_path):
    hub.add("owner/name", {"ae.safetensors": file(VAE), "model.safetensors": file(FLUX.marker)})
    fetch("owner/name")
    assert [path.name for path in finished_files(tmp_path)] == ["model.safetensors"]


def test_a_16_bit_t5_is_preferred_to_one_in_float8(hub, fetch):
    hub.add(
        "owner/encoders",
        {
            "clip_l.safetensors": file(CLIP_L),
            "t5_a_fp8.safetensors": file(T5.marker, torch.float8_e4m3fn),
            "t5_fp16.safetensors": file(T5.marker, torch.float16),
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
    hub.add("owner/name", {f"{name}.safetensors": file(FLUX.marker, dtype) for name, dtype in dtypes.items()})
    assert os.path.basename(fetch("owner/name")) == f"{expected}.safetensors"


def test_a_long_header_is_read_whole(hub, fetch):
    tensors = {f"filler.{i:05}.{'x' * 60}": torch.zeros(1) for i in range(1500)}
    hub.add("owner/name", {"model.safetensors": save({**tensors, FLUX.marker: torch.zeros(1, dtype=torch.bfloat16)})})
    assert fetch("owner/name").endswith("model.safetensors")


def test_a_file_that_is_no_safetensors_does_not_hinder_the_choice(hub, fetch):
    hub.add("owner/name", {"a.safetensors": b"PK\x03\x04 no header", "model.safetensors": file(FLUX.marker)})
    assert fetch("owner/name").endswith("model.safetensors")


@pytest.mark.parametrize("revision", ["v2", "refs/pr/1", hub_server.commit_of("owner/name", "v2")])
def test_the_revision_after_the_at_sign_is_taken(hub, fetch, revision):
    hub.add("owner/name", {"old.safetensors": file(FLUX.marker)})
    hub.add("owner/name", {"new.safetensors": file(FLUX.marker)}, revision="v2")
    hub.add("owner/name", {"new.safetensors": file(FLUX.marker)}, revision="refs/pr/1")
    assert os.path.basename(fetch(f"owner/name@{revision}")) == "new.safetensors"
    assert os.path.basename(fetch("owner/name")) == "old.safetensors"


def test_the_second_call_downloads_nothing(hub, fetch):
    hub.add("owner/name", {"model.safetensors": file(FLUX.marker, size=200_000)})
    first = fetch("owner/name")
    hub.bytes_sent = 0
    assert fetch("owner/name") == first
    # the listing and the first 100 kB, which hold the header
    assert hub.bytes_sent < 110_000


def test_environment_variables_name_the_hub_and_its_cache_and_offline_mode_reads_that_cache(hub, tmp_path):
    hub.add("owner/name", {"ae.safetensors": file(VAE), "model.safetensors": file(FLUX.marker)})
    code = (
        "from quantflux.quant_core.hub import hub_file\n"
        "from quantflux.quant_core.identify import FLUX\n"
        "import sys; sys.stdout.write(hub_file('owner/name', FLUX))"
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
    files = {"a.safetensors": file(FLUX.marker, torch.float32)}
    hub.add("owner/name", files)
    fetch("owner/name")
    files["b.safetensors"] = file(FLUX.marker, torch.bfloat16)
    chosen = fetch("owner/name")
    with caplog.at_level(logging.WARNING):
        assert fetch("owner/name", endpoint=NOWHERE) == chosen
    assert "b.safetensors from the cache" in caplog.text


def test_a_hub_that_is_down_is_as_good_as_none(hub, fetch):
    hub.add("owner/name", {"model.safetensors": file(FLUX.marker)})
    path = fetch("owner/name")
    hub.failing = {"GET": 503, "HEAD": 503}
    assert fetch("owner/name") == path


def test_a_cache_with_some_of_a_listed_snapshots_files_will_do(hub, fetch, tmp_path):
    hub.add("owner/name", {"model.safetensors": file(FLUX.marker), "transformer/part.safetensors": file(VAE)})
    path = fetch("owner/name")
    tree = pytest.importorskip("huggingface_hub._tree_cache")
    entry = tree.TreeCacheEntry(size=1, blob_id="0", lfs_sha256=None, lfs_size=None, xet_hash=None)
    commit = hub_server.commit_of("owner/name", "main")
    folder = tmp_path / "cache" / "models--owner--name"
    tree.write_tree_cache(folder, commit, {"model.safetensors": entry, "transformer/part.safetensors": entry})
    assert fetch("owner/name", endpoint=NOWHERE) == path


def test_without_network_and_cache_both_are_named(fetch):
    with pytest.raises(HubError, match=r"^owner/name: has no file with a FLUX .* cache, and the Hub cannot be reached"):
        fetch("owner/name", endpoint=NOWHERE)


def test_offline_mode_without_cache_says_how_to_leave_it(fetch, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="offline mode is on. Unset HF_HUB_OFFLINE"):
        fetch("owner/name")


def test_a_gated_repository_names_its_page_and_the_login_and_no_token(hub, fetch, monkeypatch, caplog):
    hub.add("owner/gated", {"model.safetensors": file(FLUX.marker)}, gated=True)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with caplog.at_level(logging.DEBUG), pytest.raises(HubError) as error:
        fetch("owner/gated")
    assert str(error.value).startswith("owner/gated: is gated")
    assert "https://huggingface.co/owner/gated" in str(error.value)
    assert "hf auth login" in str(error.value) and "HF_TOKEN" in str(error.value)
    assert "hf_secret" not in str(error.value) + caplog.text


def test_the_users_token_opens_a_gated_repository(hub, fetch, monkeypatch):
    hub.add("owner/gated", {"model.safetensors": file(FLUX.marker)}, gated=True)
    monkeypatch.setenv("HF_TOKEN", hub.granted)
    assert fetch("owner/gated").endswith("model.safetensors")


def test_a_missing_repository_is_named(fetch):
    with pytest.raises(HubError, match="^owner/nothing: does not exist, or is private. Check the name"):
        fetch("owner/nothing")


def test_a_missing_revision_is_named(hub, fetch):
    hub.add("owner/name", {"model.safetensors": file(FLUX.marker)})
    with pytest.raises(HubError, match="^owner/name@v9: has no revision v9"):
        fetch("owner/name@v9")


def test_a_repository_of_diffusers_folders_is_not_read_yet(hub, fetch):
    hub.add("owner/name", {"model_index.json": b"{}", "transformer/part.safetensors": file(FLUX.marker)})
    with pytest.raises(HubError, match="no .safetensors file at its root.*diffusers' layout are not read.*one .safe"):
        fetch("owner/name")


def test_a_repository_without_the_kind_says_what_it_has(hub, fetch):
    hub.add(
        "owner/name",
        {"ae.safetensors": file(VAE), "t5-00001-of-00002.safetensors": file(T5.marker), "odd.safetensors": file("x")},
    )
    with pytest.raises(HubError) as error:
        fetch("owner/name", T5)
    for part in ("ae.safetensors (a VAE)", "t5-00001-of-00002.safetensors (one part of several)", "(unknown)"):
        assert part in str(error.value)
    assert "diffusers" not in str(error.value)


def test_a_model_in_float8_alone_is_refused_before_it_is_downloaded(hub, fetch, tmp_path):
    hub.add("owner/name", {"model.safetensors": file(FLUX.marker, torch.float8_e4m3fn)})
    with pytest.raises(HubError, match="only as float8_e4m3fn"):
        fetch("owner/name")
    assert finished_files(tmp_path) == []


@pytest.mark.parametrize(
    "hub_repo",
    [
        "",
        "name",
        "/name",
        "owner/",
        "a/b/c",
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


def test_progress_moves_to_the_end(hub, fetch, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    data = file(FLUX.marker, size=500_000)
    hub.add("owner/name", {"model.safetensors": data})
    calls = []
    fetch("owner/name", progress=lambda done, total: calls.append((done, total)))
    steps = [done for done, _ in calls]
    assert len(set(steps)) > 3 and steps == sorted(steps)
    assert calls[-1] == (len(data), len(data)) and {total for _, total in calls} == {len(data)}


@pytest.mark.parametrize("kind", [RuntimeError, OSError, KeyboardInterrupt])
def test_what_progress_raises_ends_the_download_and_leaves_no_file(hub, fetch, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    hub.add("owner/name", {"model.safetensors": file(FLUX.marker, size=500_000)})
    interruption = kind("cancelled")
    calls = []

    def cancel(done, total):
        calls.append(done)
        raise interruption

    with pytest.raises(kind) as error:
        fetch("owner/name", progress=cancel)
    assert error.value is interruption and len(calls) == 1
    assert finished_files(tmp_path) == []


def test_a_hub_that_fails_between_the_listing_and_the_file_is_named(hub, fetch):
    hub.add("owner/name", {"model.safetensors": file(FLUX.marker)})
    # 501 is not one of those that are asked again after a while
    hub.failing = {"HEAD": 501}
    with pytest.raises(HubError, match="^owner/name: model.safetensors could not be downloaded"):
        fetch("owner/name")
