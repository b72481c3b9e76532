import struct

import pytest
import torch
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.errors import CheckpointError
from safetensors.torch import save_file


def test_the_header_tells_shapes_dtypes_and_metadata(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(
        {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.zeros(4, dtype=torch.float8_e4m3fn)}, path, {"k": "v"}
    )
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors["a"].shape == (2, 3)
    assert checkpoint.tensors["a"].dtype is torch.bfloat16
    assert checkpoint.tensors["b"].dtype is torch.float8_e4m3fn
    assert checkpoint.metadata == {"k": "v"}
    assert checkpoint.name == "model.safetensors"


def written(tmp_path, content: bytes, name: str = "model.safetensors"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def whole_file(tmp_path) -> bytes:
    path = tmp_path / "whole.safetensors"
    save_file({"weight": torch.randn(64, 64)}, path)
    return path.read_bytes()


def refused(path, *words: str):
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(path)
    for word in (path.name, *words):
        assert word in str(error.value)


@pytest.mark.parametrize("kept", [0, 4, 8, 20, 0.5, -1])
def test_a_file_cut_short_is_refused_wherever_the_cut_is(tmp_path, kept):
    content = whole_file(tmp_path)
    length = int(len(content) * kept) if isinstance(kept, float) else kept
    refused(written(tmp_path, content[:length]), "download it again")


def test_a_header_longer_than_the_file_is_refused(tmp_path):
    refused(written(tmp_path, struct.pack("<Q", 2**60) + b"{" + b" " * 100), "damaged")


def test_a_pickle_is_refused_without_being_opened(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"weight": torch.zeros(2)}, path)
    refused(path, "pickle", "safetensors", "run code")


def test_a_pickle_under_a_safetensors_name_is_refused_too(tmp_path):
    path = tmp_path / "model.safetensors"
    torch.save({"weight": torch.zeros(2)}, path)
    refused(path, "pickle")


def test_a_gguf_file_is_sent_to_the_pack_that_reads_it(tmp_path):
    refused(written(tmp_path, b"GGUF" + b"\0" * 100, "model.gguf"), "ComfyUI-GGUF")


def test_a_missing_file_and_a_text_file_are_refused(tmp_path):
    refused(tmp_path / "nowhere.safetensors", "cannot be read")
    refused(written(tmp_path, b"hello, this is no model", "notes.txt"), "not a safetensors file")
