"""Single files: they load to the same bits, mapped, with nothing quantized."""

import hashlib
import json
import re
import shutil
import struct
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
from dequantized import dequantized_4bit
from quantflux.quant_core import quantize as quantizing
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import FLOAT8, QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.export import provenance_of, save_single_file
from quantflux.quant_core.header import LARGEST_HEADER
from quantflux.quant_core.layouts import dequantize, is_packed, plain_tensors
from quantflux.quant_core.quantize import load
from quantflux.quant_core.recipe import METADATA_KEY
from quantflux.quant_core.source import flux_source, t5_source
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from same_bits import require_same_bits

CONFIGS = [
    QuantConfig("nf4"),
    QuantConfig("fp4", blocksize=128),
    QuantConfig("nf4", double_quant=True, compute_dtype=torch.float16),
    QuantConfig("nf4", skip_modules=("img_in", "wo")),
    QuantConfig("nf4", compute_dtype=FLOAT8),
    QuantConfig("int8", int8_threshold=2.5),
    QuantConfig("int8", int8_threshold=0.0, compute_dtype=torch.bfloat16),
]
NOTHING_PACKED = [QuantConfig("none"), *(QuantConfig(name, skip_modules=("*",)) for name in ("nf4", "int8"))]


def described(config: QuantConfig) -> str:
    return " ".join([config.describe(), *config.skip_modules, str(config.compute_dtype or "auto")])


def recipe(config: QuantConfig) -> tuple:
    """What a saved model has to keep of it."""
    common = (config.precision, config.compute_dtype)
    if config.precision == "int8":
        return (*common, config.int8_threshold)
    return (*common, config.blocksize, config.double_quant)


@pytest.mark.parametrize("config", CONFIGS, ids=described)
@pytest.mark.parametrize("kind", ["flux", "t5"])
def test_loading_a_saved_model_gives_the_same_bits_and_quantizes_nothing(kind, config, request, tmp_path, monkeypatch):
    tensors, provenance = request.getfixturevalue(f"loaded_{kind}")(config)
    path = tmp_path / "saved.safetensors"
    assert save_single_file(path, tensors, provenance) == path.stat().st_size
    monkeypatch.setattr(quantizing, "quantize", lambda *args: pytest.fail("a saved model was quantized"))
    source = {"flux": flux_source, "t5": t5_source}[kind](open_checkpoint(path))
    assert not source.packed
    assert recipe(source.config) == recipe(config)
    reloaded = load(source)
    require_same_bits(tensors, reloaded)
    assert all(is_mapped(part, path) for tensor in reloaded.values() for part in data_tensors(tensor))


def data_tensors(tensor):
    """Without the small statistics that are made while reading, such as the offset of nested ones."""
    return [part for part in plain_tensors(tensor) if part.numel() > 256]


def is_mapped(tensor: torch.Tensor, path: Path) -> bool:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs Linux")
    for line in maps.read_text().splitlines():
        if line.endswith(str(path)):
            start, end = (int(address, 16) for address in line.split()[0].split("-"))
            if start <= tensor.data_ptr() < end:
                return True
    return False


def test_a_model_at_16_bit_is_saved_as_it_is(loaded_flux, flux_file, tmp_path):
    tensors, provenance = loaded_flux(QuantConfig("none"))
    save_single_file(tmp_path / "saved.safetensors", tensors, provenance)
    saved, stored = load_file(tmp_path / "saved.safetensors"), load_file(flux_file)
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[name], stored[name]) for name in stored)
    assert "quantization_config" not in json.loads(metadata(tmp_path / "saved.safetensors")[METADATA_KEY])


@pytest.mark.parametrize("config", NOTHING_PACKED, ids=described)
@pytest.mark.parametrize("kind", ["flux", "t5"])
def test_a_model_saved_with_nothing_packed_is_packed_only_where_a_config_says_so(kind, config, request, tmp_path):
    tensors, provenance = request.getfixturevalue(f"loaded_{kind}")(config)
    path = tmp_path / "saved.safetensors"
    save_single_file(path, tensors, provenance)
    assert "quantization_config" not in json.loads(metadata(path)[METADATA_KEY])
    open_source = {"flux": flux_source, "t5": t5_source}[kind]
    source = open_source(open_checkpoint(path))
    assert not source.packed and source.config.precision == "none" and source.describe() == "16-bit"
    require_same_bits(tensors, load(source))
    assert open_source(open_checkpoint(path), QuantConfig("fp4")).packed


@pytest.mark.parametrize("config", [QuantConfig("nf4"), QuantConfig("fp4", double_quant=True)], ids=described)
def test_bitsandbytes_unpacks_every_4bit_weight(loaded_flux, config, tmp_path):
    tensors, provenance = loaded_flux(config)
    save_single_file(tmp_path / "saved.safetensors", tensors, provenance)
    saved = load_file(tmp_path / "saved.safetensors")
    for name in (name for name, tensor in tensors.items() if is_packed(tensor)):
        statistics = {key: tensor for key, tensor in saved.items() if key.startswith(f"{name}.")}
        state = bnb.QuantState.from_dict(statistics, device=torch.device("cpu"))
        assert torch.equal(dequantized_4bit(saved[name], state), dequantize(tensors[name], torch.bfloat16))


def test_int8_weights_have_their_scales_where_bitsandbytes_has_them(loaded_flux, tmp_path):
    tensors, provenance = loaded_flux(QuantConfig("int8"))
    save_single_file(tmp_path / "saved.safetensors", tensors, provenance)
    saved = load_file(tmp_path / "saved.safetensors")
    for name in (name for name, tensor in tensors.items() if is_packed(tensor)):
        scales = saved[name.removesuffix("weight") + "SCB"]
        assert saved[name].dtype == torch.int8
        assert torch.equal(
            bnb.int8_vectorwise_dequant(saved[name], scales).to(torch.bfloat16),
            dequantize(tensors[name], torch.bfloat16),
        )


def test_the_metadata_tell_recipe_source_and_versions(loaded_flux, flux_file, tmp_path):
    config = QuantConfig("nf4", blocksize=128, skip_modules=("img_in",))
    tensors, provenance = loaded_flux(config)
    save_single_file(tmp_path / "saved.safetensors", tensors, provenance)
    written = metadata(tmp_path / "saved.safetensors")
    assert written["format"] == "pt"
    ours = json.loads(written[METADATA_KEY])
    assert ours["source"] == "flux.safetensors"
    assert ours["source_header_sha256"] == header_digest(flux_file)
    assert ours["blocksize"] == 128
    assert ours["versions"].keys() == {"quantflux", "torch", "bitsandbytes"} and all(ours["versions"].values())
    wire = ours["quantization_config"]
    assert wire["llm_int8_skip_modules"] == ["img_in"]
    assert QuantConfig.from_hugging_face(wire).precision == "nf4"


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def header_digest(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha256(data[: 8 + int.from_bytes(data[:8], "little")]).hexdigest()


@pytest.mark.parametrize("dtype", [5, ["bfloat16"], "float99"])
def test_a_compute_dtype_that_is_none_is_refused(loaded_flux, tmp_path, dtype):
    """Metadata are not trusted."""
    tensors, provenance = loaded_flux(QuantConfig("nf4"))
    path = tmp_path / "saved.safetensors"
    save_single_file(path, tensors, provenance)
    ours = json.loads(metadata(path)[METADATA_KEY])
    ours["quantization_config"]["bnb_4bit_compute_dtype"] = dtype
    stored = load_file(path)
    save_file(stored, tmp_path / "changed.safetensors", {METADATA_KEY: json.dumps(ours)})
    with pytest.raises(CheckpointError, match="quantization config that cannot be used"):
        flux_source(open_checkpoint(tmp_path / "changed.safetensors"))


def test_progress_counts_all_bytes(loaded_flux, tmp_path):
    tensors, provenance = loaded_flux(QuantConfig("nf4"))
    calls = []
    size = save_single_file(tmp_path / "saved.safetensors", tensors, provenance, lambda *call: calls.append(call))
    done, total = zip(*calls, strict=True)
    assert list(done) == sorted(done) and len(set(total)) == 1
    assert done[-1] == total[0]
    assert 0 < size - total[0] < 100_000


def test_a_source_that_is_another_file_by_now_is_refused_and_not_read_whole(flux_file, tmp_path):
    path = shutil.copy(flux_file, tmp_path / "flux.safetensors")
    source = flux_source(open_checkpoint(path))
    path.write_bytes(struct.pack("<Q", LARGEST_HEADER + 1) + b"{" + b" " * LARGEST_HEADER)
    with pytest.raises(CheckpointError, match=r"flux\.safetensors: has a header of"):
        provenance_of(source)


def test_a_file_of_the_hub_cache_tells_its_repository(loaded_flux, flux_file, tmp_path):
    folder = tmp_path / "models--black-forest-labs--FLUX.1-dev" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder / "flux1-dev.safetensors").write_bytes(flux_file.read_bytes())
    provenance = provenance_of(flux_source(open_checkpoint(folder / "flux1-dev.safetensors")))
    assert provenance.base_model == "black-forest-labs/FLUX.1-dev"
    assert re.fullmatch("[0-9a-f]{64}", provenance.source_header_sha256)
