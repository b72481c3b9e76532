"""Quantize Model takes one layer at a time, and leaves the model as it was if it cannot end."""

import weakref

import comfy.model_management
import other_dits
import pytest
import torch
from host_models import stock_flux
from other_dits import MAKERS, denoised, loaded_by_host
from quantflux.nodes.host import quantized
from quantflux.quant_core.layouts import nbytes, quantize
from quantize_node import packed_names, quantize_model


def test_too_little_memory_is_told_with_the_numbers(monkeypatch):
    stock = MAKERS["SD3"]()
    before = denoised(stock)

    def little(device=None, torch_free_too=False):
        return (2**18, 2**18) if torch_free_too else 2**18

    monkeypatch.setattr(comfy.model_management, "get_free_memory", little)
    with pytest.raises(MemoryError, match=r"packed it takes 0.\d MiB, and 0.2 MiB .*free.*fewer bits"):
        quantize_model(stock)
    monkeypatch.undo()
    assert torch.equal(denoised(stock), before)


def test_a_cancelled_run_leaves_the_model():
    stock = MAKERS["SD3"]()
    before = denoised(stock)
    comfy.model_management.interrupt_current_processing()
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        quantize_model(stock)
    assert torch.equal(denoised(stock), before) and not packed_names(stock)


def test_one_layer_at_a_time(monkeypatch):
    """The 16-bit values of an fp8 weight are gone before those of the next are made."""
    stock = loaded_by_host(other_dits.sd3_tensors(torch.float16), dtype=torch.float8_e4m3fn)
    alive, most = set(), []

    def counted(weight, config, pause):
        assert weight.dtype == torch.bfloat16
        number = len(most)
        alive.add(number)
        weakref.finalize(weight, alive.discard, number)
        most.append(len(alive))
        return quantize(weight, config, pause)

    monkeypatch.setattr(quantized, "quantize", counted)
    packed = quantize_model(stock)
    assert len(most) == len(packed_names(packed)) and max(most) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_holds_the_packed_model_and_one_layer_at_most(flux_file):
    stock = stock_flux(flux_file)
    comfy.model_management.unload_all_models()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    packed = quantize_model(stock)
    held = sum(nbytes(tensor) for tensor in packed.model.parameters())
    largest = max(tensor.numel() for tensor in packed.model.parameters())
    assert packed.model.device.type == "cuda"
    # of the largest layer: as stored, and what bitsandbytes makes of it
    assert torch.cuda.max_memory_allocated() - before < 1.1 * held + 12 * largest
