"""Direct launches: one key never stands for two kernels that Triton would tell apart."""

import itertools
import math

import pytest
import torch
from interpreter import INTERPRETED
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.kernels.launch import IN_GRAPH_COLUMNS, aligned, ceil_div, power_of_2
from quantflux.quant_core.layouts import Parts, quantize
from quantflux.quant_core.linear import linear
from quantflux.quant_core.lora import LowRank
from registered import registered_module
from torch._inductor.compile_fx import compile_fx

on_a_gpu = pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="Triton compiles for a CUDA GPU")
CONFIGS = [
    QuantConfig("nf4"),
    QuantConfig("fp4", double_quant=True),
    QuantConfig("int8", int8_threshold=0.0),
    QuantConfig("int8", int8_threshold=6.0),
]


@pytest.mark.parametrize("a", (0, 1, 7, 8, 9, 4352))
@pytest.mark.parametrize("b", (1, 8, 32))
def test_sizes_are_rounded_up(a, b):
    assert ceil_div(a, b) == math.ceil(a / b)
    assert a == 0 or power_of_2(a) == 2 ** math.ceil(math.log2(a))


def test_one_pointer_between_two_multiples_is_enough():
    tensor = torch.zeros(64)
    assert aligned(tensor, tensor[4:])
    assert not aligned(tensor, tensor[1:])


@on_a_gpu
@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_a_key_stands_for_one_kernel(config, monkeypatch):
    launcher, hashes = registered_module("kernels.launch").Launcher, {}
    launched = launcher.__call__

    def watched(self, programs, key, *arguments, **options):
        if key is not None:
            compiled = self.kernel.warmup(*arguments, grid=(programs,), **options)
            assert hashes.setdefault((self, key), compiled.hash) == compiled.hash
        launched(self, programs, key, *arguments, **options)

    monkeypatch.setattr(launcher, "__call__", watched)
    generator = torch.Generator().manual_seed(0)
    shapes, tokens = [(512, 1024), (96, 1024), (512, 256)], (64, 300, 4352)
    for shape, count, dtype in itertools.product(shapes, tokens, (torch.bfloat16, torch.float16, torch.float32)):
        weight = quantize(torch.randn(shape, generator=generator).cuda(), config)
        wide = torch.randn(count, shape[1] + 8, generator=generator).cuda().to(dtype)
        for x in (wide[:, 8:].contiguous(), wide[:, 8:], wide[:, 1 : shape[1] + 1]):
            bias = torch.zeros(shape[0], device="cuda", dtype=dtype)
            linear(x, weight)
            linear(x, weight, bias)
            linear(x, weight, bias, float8=True)
            down, up = torch.ones(16, shape[1]), torch.ones(shape[0], 16)
            linear(x, weight, bias, LowRank(down.to(x), up.to(x)))
    assert hashes


def compiled_and_not(config, tokens, generator, columns=1024, float8=False) -> tuple[torch.Tensor, torch.Tensor, set]:
    """A product by inductor and by our kernels alone, and which of our operators the graph kept."""
    operators = set()

    def inspecting(module, inputs):
        operators.update(str(node.target) for node in module.graph.nodes if "quantflux" in str(node.target))
        return compile_fx(module, inputs)

    weight = quantize(torch.randn(512, columns, generator=generator).cuda(), config)
    x = torch.randn(tokens, columns, generator=generator)
    x[:, 7] *= 8
    bias = torch.randn(512, generator=generator).cuda().bfloat16()
    torch._dynamo.reset()
    compiled = torch.compile(linear, backend=inspecting, fullgraph=True)
    with torch.inference_mode():
        y, expected = (f(x.cuda().bfloat16(), Parts.of(weight), bias, None, float8) for f in (compiled, linear))
    return y, expected, operators


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).float().norm() / expected.float().norm()).item()


@on_a_gpu
@pytest.mark.parametrize("tokens", (1, 300))
@pytest.mark.parametrize("float8", (False, True))
@pytest.mark.parametrize("config, inlined", [(CONFIGS[0], True), (CONFIGS[1], False)], ids=["plain", "nested"])
def test_a_compiled_graph_starts_the_kernels_itself_where_that_keeps_their_bits(
    config, inlined, float8, tokens, generator
):
    y, expected, operators = compiled_and_not(config, tokens, generator, float8=float8)
    if float8 and tokens > 1:
        # short rows of inputs are quantized by inductor, whose division does not round to nearest
        assert relative_error(y, expected) < 5e-3
    else:
        assert torch.equal(y, expected)
    # one row is a sum in itself: it has no bits to keep
    assert bool(operators) == (not inlined and tokens > 1)


@on_a_gpu
def test_a_compiled_graph_quantizes_long_rows_to_float8_itself(generator):
    y, expected, operators = compiled_and_not(CONFIGS[0], 300, generator, 2 * IN_GRAPH_COLUMNS, float8=True)
    assert relative_error(y, expected) < 5e-3
    assert not operators


@on_a_gpu
@pytest.mark.parametrize("tokens", (1, 300))
@pytest.mark.parametrize("columns", (1024, 8192))
@pytest.mark.parametrize("config", CONFIGS[2:], ids=QuantConfig.describe)
def test_a_compiled_graph_quantizes_inputs_to_int8_itself(config, columns, tokens, generator):
    y, expected, operators = compiled_and_not(config, tokens, generator, columns)
    if columns <= IN_GRAPH_COLUMNS and not config.int8_threshold:
        assert relative_error(y, expected) < 5e-3  # by inductor, as above
    else:
        assert torch.equal(y, expected)
    assert operators == ({"quantflux.int8_product"} if tokens > 1 else set())
