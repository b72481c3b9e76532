"""The cancel button while torch compiles one block, or a model that is one graph."""

import logging
import threading
import time

import comfy.ldm.flux.math
import comfy.model_management
import comfy.sample
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_management import InterruptProcessingException, interrupt_current_processing, processing_interrupted
from quantflux.nodes.compile import QuantFluxCompile
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.interrupt_compiling import cancellable_compiling
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.source import flux_source
from small_models import random_flux, save_native_flux
from torch._dynamo.callback import callback_handler

SECONDS = 2
BLOCKS = 12  # of each kind: as one graph they take torch far longer than SECONDS


@pytest.fixture(autouse=True)
def a_compiler_that_knows_nothing_yet(monkeypatch):
    torch._dynamo.reset()
    # pytest would keep some thousands of its records
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    # on a CPU the host takes an attention that asks for the free memory, which no graph can hold
    monkeypatch.setattr(comfy.ldm.flux.math, "optimized_attention", attention_pytorch)
    yield
    interrupt_current_processing(False)


@pytest.fixture
def compiling():
    """An event that is set when a compilation of the model begins."""
    event = threading.Event()

    def begun(*_):
        event.set()

    callback_handler.register_start_callback(begun)
    yield event
    callback_handler.remove_start_callback(begun)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("deep") / "flux.safetensors"
    save_native_flux(random_flux(num_layers=BLOCKS, num_single_layers=BLOCKS), path)
    with torch.inference_mode():
        return load_flux_model(flux_source(open_checkpoint(path), QuantConfig("nf4")))


def compiled(model, regional: bool):
    return QuantFluxCompile.execute(model, "aot_eager", "default", regional, True, "auto").args[0]


def sample(model) -> torch.Tensor:
    latent = torch.zeros(1, 16, 16, 16)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    context = torch.randn(1, 16, 128, generator=torch.Generator().manual_seed(1))
    condition = [[context, {"pooled_output": torch.zeros(1, 64), "guidance": 3.5}]]
    return comfy.sample.sample(
        model, noise, 1, 1.0, "euler", "simple", condition, condition, latent, disable_pbar=True, seed=0
    )


def pressing(compiling: threading.Event, seconds: float) -> list[float]:
    """Presses the button some ``seconds`` after a compilation began; when it did is in what is returned."""
    pressed = []

    def press():
        assert compiling.wait(60)
        time.sleep(seconds)
        pressed.append(time.monotonic())
        interrupt_current_processing()

    threading.Thread(target=press).start()
    return pressed


@pytest.mark.parametrize("after", [0.2, 1.5, 4.0])
def test_compiling_stops_within_two_seconds(model, compiling, after):
    fast = compiled(model, regional=False)
    compiling.clear()
    pressed = pressing(compiling, after)
    with pytest.raises(InterruptProcessingException):
        sample(fast)
    assert time.monotonic() - pressed[0] < SECONDS
    assert not processing_interrupted()
    assert not [thread for thread in threading.enumerate() if thread.name == "quantflux cancel"]


def test_what_was_stopped_compiles_when_it_runs_again(model, compiling):
    fast = compiled(model, regional=True)
    compiling.clear()
    pressing(compiling, 0.3)
    with pytest.raises(InterruptProcessingException):
        sample(fast)
    torch.testing.assert_close(sample(fast), sample(model))


def test_the_button_pressed_before_is_no_ones_but_the_samplers():
    """It is looked at while torch compiles; else the host does."""
    with cancellable_compiling():
        interrupt_current_processing()
        time.sleep(0.5)
    assert processing_interrupted()


def test_nothing_is_left_of_it(model):
    before = len(callback_handler.start_callbacks), len(callback_handler.end_callbacks)
    sample(compiled(model, True))
    assert (len(callback_handler.start_callbacks), len(callback_handler.end_callbacks)) == before


def test_an_error_of_the_compiler_stays_that_error():
    with pytest.raises(ValueError, match="mine"), cancellable_compiling():
        raise ValueError("mine")


def test_another_threads_compiling_is_not_interrupted():
    """Two threads, of which one looks at the button and the other compiles, for several looks."""
    failed = []

    def slow(graph, inputs):
        time.sleep(1)
        return graph

    def compile_something():
        try:
            torch.compile(lambda x: x * 2 + 1, backend=slow)(torch.ones(3))
        except BaseException as error:  # whatever it is
            failed.append(error)

    interrupt_current_processing()
    with cancellable_compiling():
        thread = threading.Thread(target=compile_something)
        thread.start()
        thread.join()
    assert not failed
