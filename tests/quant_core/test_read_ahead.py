import errno
import os
import struct
import threading

import pytest
import torch
from quantflux.quant_core import read_ahead
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.header import LARGEST_HEADER, tensor_places
from quantflux.quant_core.quantize import _read_on_device
from quantflux.quant_core.read_ahead import ReadAhead, _Buffer
from quantflux.quant_core.source import flux_source
from safetensors.torch import load_file, save_file

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """So that small tensors are read in many pieces, and buffers are used again."""
    monkeypatch.setattr(read_ahead, "PIECE", 1000)
    monkeypatch.setattr(read_ahead, "PIECES", 3)
    monkeypatch.setattr(read_ahead, "SMALLEST", 100)


@pytest.fixture
def path(tmp_path, generator):
    tensors = {
        "matrix": torch.randn(100, 30, generator=generator).to(torch.bfloat16),
        "one_piece": torch.randint(0, 255, (1000,), dtype=torch.uint8, generator=generator),
        "tiny": torch.randn(3, generator=generator),
        "more": torch.randn(1001, generator=generator),
        "float8": torch.randn(50, 50, generator=generator).to(torch.float8_e4m3fn),
    }
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    return path


def read(path, device, names, asked):
    checkpoint = open_checkpoint(path)
    with checkpoint.reader() as reader:
        ahead = ReadAhead(reader, checkpoint.tensors, names, device)
        try:
            return [ahead.get(name, device) for name in asked], len(ahead._order)
        finally:
            ahead.close()


def same_bytes(tensor, other):
    return tensor.dtype == other.dtype and torch.equal(tensor.cpu().view(torch.uint8), other.view(torch.uint8))


def test_tensors_come_as_stored_and_all_large_ones_were_read_ahead(path, device):
    stored = load_file(path)
    names = list(stored)
    tensors, not_asked_for = read(path, device, names, names)
    assert all(same_bytes(tensor, stored[name]) for name, tensor in zip(names, tensors, strict=True))
    assert all(tensor.device.type == device.type for tensor in tensors)
    assert not_asked_for == 0


@pytest.mark.parametrize("asked", [["float8", "matrix"], ["tiny", "more", "more", "matrix"], []])
def test_another_order_than_announced_gives_the_same_tensors(path, device, asked):
    stored = load_file(path)
    tensors, _ = read(path, device, list(stored), asked)
    assert all(same_bytes(tensor, stored[name]) for name, tensor in zip(asked, tensors, strict=True))


def test_only_what_is_read_on_the_device_is_announced(flux_file):
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    source = flux_source(open_checkpoint(flux_file), QuantConfig("nf4"))
    unquantized = flux_source(open_checkpoint(flux_file), QuantConfig("none"))
    assert _read_on_device(source, gpu, gpu) == _read_on_device(unquantized, gpu, gpu) == list(source.tensors)
    assert set(_read_on_device(source, gpu, cpu)) == source.packed.keys()
    assert _read_on_device(unquantized, gpu, cpu) == []


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="needs preadv")
def test_waiting_for_a_disk_that_does_not_answer_can_be_stopped(path, monkeypatch):
    answers = threading.Event()
    preadv = os.preadv
    monkeypatch.setattr(read_ahead, "PATIENCE", 0.01)
    monkeypatch.setattr(os, "preadv", lambda *args: answers.wait() and preadv(*args))
    asked = []

    def pause():
        asked.append(1)
        if len(asked) == 3:
            answers.set()  # so that its threads can end
            raise InterruptedError

    checkpoint = open_checkpoint(path)
    with checkpoint.reader() as reader:
        ahead = ReadAhead(reader, checkpoint.tensors, ["matrix"], CPU, pause)
        try:
            with pytest.raises(InterruptedError):
                ahead.get("matrix", CPU)
        finally:
            ahead.close()


def test_a_file_cut_short_while_it_is_read_is_an_error_that_names_it(path, monkeypatch):
    # of each tensor only the first piece has been read by then
    monkeypatch.setattr(read_ahead, "PIECE", 100)
    monkeypatch.setattr(read_ahead, "PIECES", 1)
    checkpoint = open_checkpoint(path)
    places = tensor_places(str(path))
    last = max(places, key=lambda name: places[name][1])
    with checkpoint.reader() as reader:
        ahead = ReadAhead(reader, checkpoint.tensors, [last], CPU)
        try:
            path.write_bytes(path.read_bytes()[:-10])
            with pytest.raises(CheckpointError, match=r"model\.safetensors: ended while it was read"):
                ahead.get(last, CPU)
        finally:
            ahead.close()


def test_a_file_cut_short_after_it_was_opened_is_refused_at_once(path):
    checkpoint = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-10])
    assert "data_offsets that are not within" in refused(checkpoint, "matrix")


@pytest.mark.parametrize(
    "matrix",
    [
        torch.zeros(100, 30, dtype=torch.float16),
        torch.zeros(30, 100, dtype=torch.bfloat16),
        torch.zeros(100, 31, dtype=torch.bfloat16),
        torch.zeros(100, 30),
        None,
    ],
    ids=["dtype", "shape", "more rows", "larger numbers", "gone"],
)
def test_a_file_that_has_another_tensor_of_the_name_now_is_refused_as_by_the_plain_reader(path, tmp_path, matrix):
    checkpoint = open_checkpoint(path)
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != "matrix"}
    save_file(tensors | ({} if matrix is None else {"matrix": matrix}), tmp_path / "new")
    os.replace(tmp_path / "new", path)
    message = refused(checkpoint, "matrix")
    assert message == "model.safetensors: was changed while it was read, at matrix. Load it again."
    if matrix is not None:
        with checkpoint.reader() as reader, pytest.raises(CheckpointError) as error:
            reader.get_tensor("matrix")
        assert message == str(error.value)


def test_a_file_with_the_same_tensors_elsewhere_in_it_is_read(path, tmp_path):
    checkpoint = open_checkpoint(path)
    stored = load_file(path)
    save_file(stored | {"a_new_one": torch.zeros(500, dtype=torch.float64)}, tmp_path / "new")
    os.replace(tmp_path / "new", path)
    with checkpoint.reader() as reader:
        ahead = ReadAhead(reader, checkpoint.tensors, ["matrix"], CPU)
        assert same_bytes(ahead.get("matrix", CPU), stored["matrix"])
        ahead.close()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"", "is empty"),
        (struct.pack("<Q", 2) + b"{]", "no usable JSON"),
        (struct.pack("<Q", 2) + b"{}", "was changed while it was read"),
        (struct.pack("<Q", 2**62) + b"{", "ends within its header"),
        (struct.pack("<Q", LARGEST_HEADER + 1) + b"{" + b" " * LARGEST_HEADER, "has a header of"),
    ],
    ids=["gone", "empty", "no JSON", "no tensors", "cut", "large"],
)
def test_a_header_that_is_no_longer_usable_is_an_error_that_names_the_file(path, content, words):
    checkpoint = open_checkpoint(path)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    message = refused(checkpoint, "matrix")
    assert message.startswith("model.safetensors: ") and words in message


@pytest.mark.skipif(not hasattr(os, "preadv"), reason="needs preadv")
def test_a_disk_that_fails_is_an_error_that_names_the_file(path, monkeypatch):
    def fails(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fails)
    checkpoint = open_checkpoint(path)
    with checkpoint.reader() as reader:
        ahead = ReadAhead(reader, checkpoint.tensors, ["matrix"], CPU)
        try:
            with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read .*Input/output error"):
                ahead.get("matrix", CPU)
        finally:
            ahead.close()


@pytest.mark.parametrize(("names", "buffers"), [([], 0), (["tiny"], 0), (["one_piece"], 1), (["matrix", "more"], 3)])
def test_no_more_buffers_are_allocated_than_there_are_pieces(path, monkeypatch, names, buffers):
    made = []
    monkeypatch.setattr(read_ahead, "_Buffer", lambda data: made.append(data) or _Buffer(data))
    checkpoint = open_checkpoint(path)
    with checkpoint.reader() as reader:
        ReadAhead(reader, checkpoint.tensors, names, CPU).close()
    assert len(made) == buffers


def refused(checkpoint, name) -> str:
    with checkpoint.reader() as reader, pytest.raises(CheckpointError) as error:
        ReadAhead(reader, checkpoint.tensors, [name], CPU)
    return str(error.value)
