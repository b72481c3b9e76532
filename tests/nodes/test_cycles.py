"""Nothing is left of a model that is loaded, used and let go, however often."""

import gc

import comfy.model_management
import loras
import psutil
import torch
from comfy_kitchen.tensor import QuantizedTensor
from flux_predictions import predict
from host_models import with_loras
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.source import flux_source

CYCLES = 50


def cycle(flux_file, tensors):
    patcher = load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig("nf4")))
    patched = with_loras(patcher, tensors)
    predict(patched)
    patched.partially_unload(patched.offload_device, patched.model_size() // 2)
    comfy.model_management.unload_all_models()


def left() -> tuple[int, int, int]:
    """(packed weights alive, bytes of main memory of the process, bytes of its tensors on a GPU)"""
    gc.collect()
    comfy.model_management.cleanup_models()
    # type, because isinstance asks some lazy modules, which then warn
    packed = sum(type(thing) is QuantizedTensor for thing in gc.get_objects())
    on_gpu = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    return packed, psutil.Process().memory_info().rss, on_gpu


def test_fifty_cycles_leave_no_more_than_two(flux_file):
    tensors = loras.peft()
    for _ in range(2):
        cycle(flux_file, tensors)
    packed, memory, on_gpu = left()
    for _ in range(CYCLES - 2):
        cycle(flux_file, tensors)
    packed_later, memory_later, on_gpu_later = left()
    assert packed_later == packed
    assert memory_later <= memory * 1.01
    assert on_gpu_later <= on_gpu * 1.01


def test_two_models_of_one_file_share_nothing(flux_file):
    one, other = (load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig("nf4"))) for _ in range(2))
    base = predict(other)
    predict(with_loras(one, loras.kohya()))
    assert (predict(other) == base).all()
    assert (predict(one) == base).all()
