import os
import threading

import pytest
import torch
from quantflux.quant_core import read_ahead
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.quantize import _read_on_device
from quantflux.quant_core.read_ahead import ReadAhead
from quantflux.quant_core.source import flux_source
from safetensors.torch import load_file, save_file


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
    cpu = torch.device("cpu")
    with checkpoint.reader() as reader:
        ahead = ReadAhead(reader, checkpoint.tensors, ["matrix"], cpu, pause)
        try:
            with pytest.raises(InterruptedError):
                ahead.get("matrix", cpu)
        finally:
            ahead.close()


def test_a_file_cut_short_after_it_was_opened_is_an_error_that_names_it(path):
    checkpoint = open_checkpoint(path)
    last = max(checkpoint.tensors, key=lambda name: read_ahead._starts([str(path)])[str(path)][name])
    with checkpoint.reader() as reader:
        path.write_bytes(path.read_bytes()[:-10])
        ahead = ReadAhead(reader, checkpoint.tensors, [last], torch.device("cpu"))
        try:
            with pytest.raises(CheckpointError, match=r"model\.safetensors: ended while it was read"):
                ahead.get(last, torch.device("cpu"))
        finally:
            ahead.close()
