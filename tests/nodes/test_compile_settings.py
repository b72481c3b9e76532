"""What the Compile node asks torch for, and what it refuses before anything is compiled."""

from types import SimpleNamespace

import pytest
import torch
import torch._inductor
from quantflux.nodes.compile import QuantFluxCompile
from quantflux.nodes.host.compile_settings import MODES, CompileSettings, while_compiling
from quantflux.quant_core.errors import ConfigError
from torch._higher_order_ops import triton_kernel_wrap


def run(model=None, backend="inductor", mode="default", dynamic="auto"):
    """The node, of whose ``model`` nothing but its device is looked at before it refuses."""
    return QuantFluxCompile.execute(model, backend, mode, True, False, dynamic)


def test_inductor_measures_which_kernels_are_faster_where_no_cuda_graph_records_it():
    options = {mode: CompileSettings(mode=mode).arguments["options"] for mode in MODES}
    for mode in ("default", "max-autotune-no-cudagraphs"):
        assert options[mode] == torch._inductor.list_mode_options(mode) | {"triton.multi_kernel": 1}
    for mode in ("reduce-overhead", "max-autotune"):
        assert options[mode] == torch._inductor.list_mode_options(mode)
    assert CompileSettings("aot_eager").arguments["options"] is None
    # which raises where torch does not know one
    torch.compile(torch.sin, **CompileSettings().arguments)


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"backend": "fast"}, "backend is 'fast'. Use one of inductor, "),
        ({"mode": "fast"}, "mode is 'fast'. Use one of default, "),
        ({"dynamic": "yes"}, "dynamic is 'yes'. Use one of auto, on, off."),
        (
            {"backend": "eager", "mode": "max-autotune"},
            "mode max-autotune is one of inductor's, and backend is eager. Set mode to default.",
        ),
    ],
)
def test_values_that_are_no_choice_are_refused(inputs, message):
    with pytest.raises(ConfigError) as error:
        run(**inputs)
    assert str(error.value).startswith(message)


def test_kernels_are_read_once_while_compiling():
    original = triton_kernel_wrap.generate_ttir
    with while_compiling():
        assert triton_kernel_wrap.generate_ttir is not original
    assert triton_kernel_wrap.generate_ttir is original


@pytest.mark.parametrize("inputs", [{"backend": "inductor", "mode": "reduce-overhead"}, {"backend": "cudagraphs"}])
def test_cuda_graphs_are_refused_where_the_allocator_cannot_hold_them(inputs, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    with pytest.raises(ConfigError, match="Start ComfyUI with --disable-cuda-malloc"):
        run(SimpleNamespace(load_device=torch.device("cuda", 0)), **inputs)
