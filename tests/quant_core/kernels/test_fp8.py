"""4-bit weights in float8: the error of the format, the kernels against their reference, and who is refused."""

import pytest
import torch
from comfy_kitchen.tensor import QuantizedTensor
from interpreter import INTERPRETED, run_interpreted
from quantflux.quant_core import linear as products
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import ConfigError
from quantflux.quant_core.kernels import triton_available
from quantflux.quant_core.kernels.four_bit import code_table
from quantflux.quant_core.kernels.fp8 import (
    FLOAT8,
    can_multiply,
    quantize_rows,
    quantize_rows_reference,
    require_float8,
    scaled_mm,
    scaled_mm_reference,
    unpack_4bit_rows,
    unpack_4bit_rows_reference,
)
from quantflux.quant_core.kernels.launch import IN_GRAPH_COLUMNS
from quantflux.quant_core.layouts import FourBitLayout, dequantize, quantize
from quantflux.quant_core.lora import LowRank
from registered import registered_module
from torch._subclasses.fake_tensor import FakeTensorMode

LEAST_CAPABILITY = (8, 9)
GPU = torch.cuda.is_available()
FLOAT8_GPU = (
    GPU and torch.cuda.get_device_capability() >= LEAST_CAPABILITY and triton_available(torch.device("cuda", 0))
)
CONFIGS = [
    QuantConfig("nf4"),
    QuantConfig("fp4"),
    QuantConfig("nf4", double_quant=True),
    QuantConfig("nf4", None, True, 256),
]
SHAPES = [(16, 256), (3, 768), (1, 1280)]

needs_float8 = pytest.mark.skipif(not FLOAT8_GPU, reason="needs a GPU of compute capability 8.9 with Triton")


@pytest.fixture(params=CONFIGS, ids=QuantConfig.describe)
def config(request) -> QuantConfig:
    return request.param


@pytest.mark.skipif(FLOAT8_GPU or INTERPRETED, reason="the kernels are tested in this process")
def test_the_kernels_hold_in_the_interpreter(tmp_path):
    run_interpreted(__file__, tmp_path, CUDA_VISIBLE_DEVICES="")


def arguments(weight) -> tuple:
    """Of the unpacking functions."""
    params = weight._params
    return (
        weight._qdata, params.scale, *params.orig_shape, params.blocksize, params.quant_type,
        params.absmax_8bit, params.absmax_code, params.absmax_offset,
    )  # fmt: skip


def packed(shape, config, generator, device="cpu") -> torch.Tensor:
    return quantize((torch.randn(shape, generator=generator) * 0.02).bfloat16().to(device), config)


def by_reference(x, weight, bias=None) -> torch.Tensor:
    return scaled_mm_reference(*quantize_rows_reference(x), *unpack_4bit_rows_reference(*arguments(weight)), bias)


def error(y, expected) -> float:
    return ((y.float() - expected).norm() / expected.norm()).item()


def test_the_product_is_within_a_tenth_of_the_error_that_4_bit_has_anyway(config, generator):
    weight = torch.randn(512, 2048, generator=generator) * 0.02
    x = torch.randn(256, 2048, generator=generator)
    exact = x @ weight.T
    four_bits = quantize(weight, config)
    own = error(x @ dequantize(four_bits, torch.float32).T, exact)
    assert error(by_reference(x, four_bits), exact) < 1.10 * own


def test_the_scale_of_a_row_is_that_of_its_largest_weight(config, generator):
    weight = packed((16, 512), config, generator)
    unpacked, scale = unpack_4bit_rows_reference(*arguments(weight))
    assert (unpacked.float().abs().amax(1) == 448).all()
    largest = dequantize(weight, torch.float32).abs().amax(1, keepdim=True)
    torch.testing.assert_close(scale, largest / 448, rtol=1e-6, atol=0)


def test_rows_of_zeros_and_of_any_size_stay_finite():
    x = torch.stack([torch.zeros(64), torch.full((64,), 1e-38), torch.linspace(-1e38, 1e38, 64)])
    quantized, scale = quantize_rows_reference(x)
    assert quantized.float().isfinite().all()
    assert (quantized[0].float() == 0).all()
    assert error((quantized.float() * scale)[2] / 1e38, x[2] / 1e38) < 0.04
    weight = quantize(torch.zeros(2, 64), QuantConfig("nf4"))
    assert (unpack_4bit_rows_reference(*arguments(weight))[0].float() == 0).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_unpacks_rows_as_the_reference_does(config, shape, generator, kernel_device):
    from quantflux.quant_core.kernels import fp8_triton as kernels

    weight = packed(shape, config, generator, kernel_device)
    expected, expected_scale = unpack_4bit_rows_reference(*arguments(weight))
    params = weight._params
    # before the rounding: the interpreter's own to float8 is wrong
    out, scale = torch.full(shape, torch.nan, device=kernel_device), torch.empty(shape[0], 1, device=kernel_device)
    statistics = params.scale, params.absmax_8bit, params.absmax_code, params.absmax_offset
    code = code_table(params.quant_type, weight._qdata.device)
    kernels.unpack_rows(weight._qdata, statistics, code, out, scale, params.blocksize)
    assert torch.equal(out.to(FLOAT8).float(), expected.float())
    assert torch.equal(scale, expected_scale)
    if not INTERPRETED:
        rounded, scale = unpack_4bit_rows(*arguments(weight))
        assert torch.equal(rounded.float(), expected.float())
        assert torch.equal(scale, expected_scale)


@pytest.mark.parametrize("columns", [300, 4100])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32] if INTERPRETED else [torch.bfloat16, torch.float32])
def test_the_kernel_quantizes_rows_as_the_reference_does(columns, dtype, generator, kernel_device):
    from quantflux.quant_core.kernels import fp8_triton as kernels

    # columns of a wider tensor: its rows are further apart
    x = torch.randn(5, columns + 4, generator=generator).to(kernel_device, dtype)[:, :columns]
    x[2] = 0
    expected, expected_scale = quantize_rows_reference(x)
    out, scale = torch.full((5, columns), torch.nan, device=kernel_device), torch.empty(5, 1, device=kernel_device)
    kernels.quantize_rows(x, out, scale)
    assert torch.equal(out.to(FLOAT8).float(), expected.float())
    assert torch.equal(scale, expected_scale)
    if not INTERPRETED:
        rounded, scale = quantize_rows(x)
        assert torch.equal(rounded.float(), expected.float())
        assert torch.equal(scale, expected_scale)


def test_the_kernel_operator_has_the_schema_and_shapes_that_it_says(generator, kernel_device):
    tests = ("test_schema", "test_faketensor")
    weight = packed((16, 256), QuantConfig("nf4", double_quant=True), generator, kernel_device)
    torch.library.opcheck(torch.ops.quantflux.unpack_4bit_rows.default, arguments(weight), test_utils=tests)


@pytest.mark.parametrize("columns", [300, IN_GRAPH_COLUMNS + 4])
def test_inputs_are_quantized_within_a_graph_to_the_same_values(columns, generator):
    # columns of a wider tensor: its rows are further apart
    x = torch.randn(5, columns + 4, generator=generator).bfloat16()[:, :columns]
    expected, expected_scale = quantize_rows_reference(x)
    out, scale = torch.compile(quantize_rows, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(out.float(), expected.float())
    assert torch.equal(scale, expected_scale)


@needs_float8
def test_the_product_of_the_gpu_is_that_of_the_reference(config, generator):
    weight = packed((512, 1024), config, generator, "cuda")
    x = torch.randn(300, 1024, generator=generator).bfloat16().cuda()
    bias = torch.randn(512, generator=generator).bfloat16().cuda()
    inner = *quantize_rows(x), *unpack_4bit_rows(*arguments(weight))
    expected = scaled_mm_reference(*inner, bias).float()
    assert error(scaled_mm(*inner, bias), expected) < 5e-3
    assert error(products.linear(x, weight, bias, float8=True), expected) < 5e-3


@needs_float8
@pytest.mark.parametrize("rows", [1, 48])
def test_few_rows_of_input_are_multiplied_in_16_bit(rows, generator):
    weight = packed((512, 1024), QuantConfig("nf4"), generator, "cuda")
    x = torch.randn(rows, 1024, generator=generator).bfloat16().cuda()
    assert torch.equal(products.linear(x, weight, float8=True), products.linear(x, weight))


@needs_float8
def test_a_lora_stays_in_16_bit(generator):
    weight = packed((512, 1024), QuantConfig("nf4"), generator, "cuda")
    x = torch.randn(300, 1024, generator=generator).bfloat16().cuda()
    low_rank = LowRank(
        (torch.randn(32, 1024, generator=generator) * 0.02).bfloat16().cuda(),
        torch.randn(512, 32, generator=generator).bfloat16().cuda(),
    )
    with_lora = products.linear(x, weight, None, low_rank, float8=True).float()
    without = products.linear(x, weight, float8=True).float()
    assert error(with_lora - without, low_rank.of(x, None).float()) < 0.01


@needs_float8
def test_a_product_compiles_in_one_graph(generator):
    weight = packed((512, 1024), QuantConfig("nf4"), generator, "cuda")
    x = torch.randn(300, 1024, generator=generator).bfloat16().cuda()
    torch._dynamo.reset()
    compiled = torch.compile(products.linear, fullgraph=True)
    with torch.inference_mode():
        # the compiler divides without rounding to nearest, so that a few inputs round to another step
        expected = products.linear(x, weight, float8=True).float()
        assert error(compiled(x, weight, float8=True), expected) < 5e-3


@pytest.mark.parametrize("rank", [None, 32])
def test_a_trace_for_a_gpu_takes_float8(rank, monkeypatch):
    module = registered_module("layouts.four_bit")
    monkeypatch.setattr(module, "triton_available", lambda device: True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    seen = []
    monkeypatch.setattr(module, "scaled_mm", lambda *inner: seen.append(inner) or scaled_mm(*inner))
    with FakeTensorMode(), torch.device("cuda"):
        params = FourBitLayout.Params(
            scale=torch.empty(256), orig_dtype=torch.bfloat16, orig_shape=(64, 256), quant_type="nf4", blocksize=64
        )
        weight = QuantizedTensor(torch.empty(8192, 1, dtype=torch.uint8), FourBitLayout.NAME, params)
        x = torch.empty(2, 100, 256, dtype=torch.bfloat16)
        low_rank = rank and LowRank(x.new_empty(rank, 256), x.new_empty(64, rank))
        y = products.linear(x, weight, x.new_empty(64), low_rank, float8=True)
    assert [(tuple(t.shape), t.dtype) for t in seen[0][:4]] == [
        ((200, 256), FLOAT8), ((200, 1), torch.float32), ((64, 256), FLOAT8), ((64, 1), torch.float32)
    ]  # fmt: skip
    assert (y.shape, y.dtype) == ((2, 100, 64), torch.bfloat16)


def test_on_a_cpu_float8_changes_nothing(generator):
    weight = packed((64, 256), QuantConfig("nf4"), generator)
    x = torch.randn(100, 256, generator=generator).bfloat16()
    assert torch.equal(products.linear(x, weight, float8=True), products.linear(x, weight))


def test_weights_that_the_product_does_not_take_are_known():
    assert can_multiply((21504, 3072), 64)
    assert not can_multiply((24, 3072), 64)
    assert not can_multiply((3072, 16448), 64)
    assert not can_multiply((64, 96), 64)


def test_devices_that_cannot_are_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="NVIDIA.*cpu.*auto"):
        require_float8(torch.device("cpu"))
    with pytest.raises(ConfigError, match="8.9.*8.6.*auto"):
        require_float8(torch.device("cuda:0"), capability=(8, 6))


@needs_float8
def test_a_gpu_that_can_is_taken():
    require_float8(torch.device("cuda:0"))
