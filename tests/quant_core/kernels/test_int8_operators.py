"""LLM.int8() as an operator: its reference against bitsandbytes, and the operator under torch.compile."""

import itertools

import pytest
import torch
from bitsandbytes.nn import Int8Params, Linear8bitLt
from quantflux.quant_core.kernels import triton_available
from quantflux.quant_core.kernels.int8 import (
    _int8_linear_bitsandbytes,
    int8_add_linear,
    int8_linear,
    scaled_in_range,
)
from quantflux.quant_core.kernels.int8_configs import choose
from quantflux.quant_core.kernels.int8_reference import FLOAT16_MAX, int8_linear_reference, quantize_rows_reference
from registered import registered_module

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
TOKENS, ROWS, COLUMNS = 45, 112, 160


def inputs(generator, dtype=torch.bfloat16, tokens=TOKENS) -> torch.Tensor:
    """Inputs with three columns of which some values, not all, are beyond the usual threshold."""
    x = torch.randn(tokens, COLUMNS, generator=generator)
    x[:, [5, 77, 150]] *= 8
    return x.to(dtype)


@pytest.fixture
def packed(generator, device) -> tuple[torch.Tensor, torch.Tensor]:
    codes, absmax, _ = quantize_rows_reference(torch.randn(ROWS, COLUMNS, generator=generator) * 0.02)
    return codes.to(device), absmax.to(device)


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_the_reference_quantizes_as_bitsandbytes(generator, device, threshold):
    x = inputs(generator, torch.float16, tokens=3000).to(device)
    codes, absmax, outliers = torch.ops.bitsandbytes.int8_vectorwise_quant(x.clone(), threshold)
    expected_codes, expected_absmax, mask = quantize_rows_reference(x, threshold)
    assert torch.equal(absmax, expected_absmax)
    # its GPU kernel divides approximately: a tie may fall the other way
    difference = (codes.int() - expected_codes.int()).abs()
    assert difference.max() <= (device.type == "cuda")
    assert difference.float().mean() < 1e-3
    if threshold:
        assert torch.equal(outliers, mask.nonzero().view(-1))


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_reference_is_linear8bitlt_to_rounding(generator, device, dtype, threshold):
    bias = torch.randn(ROWS, generator=generator).to(dtype)
    weight = torch.randn(ROWS, COLUMNS, generator=generator) * 0.02
    layer = Linear8bitLt(COLUMNS, ROWS, has_fp16_weights=False, threshold=threshold)
    layer.weight = Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False)
    layer.bias = torch.nn.Parameter(bias, requires_grad=False)
    layer.to(device).eval()
    codes, scale = layer.weight.data.clone(), layer.weight.SCB.clone()
    x = inputs(generator, dtype).to(device)
    with torch.no_grad():
        theirs = layer(x)
    ours = int8_linear_reference(x, codes, scale, bias.to(device), threshold)
    # it rounds twice, before and after the outlier columns, on a GPU to float16 first; its CPU kernel's
    # 1 / 127**2 is 2e-5 off
    eps = max(torch.finfo(dtype).eps, 2e-5 if device.type == "cpu" else torch.finfo(torch.float16).eps)
    assert (ours.float() - theirs.float()).norm() <= eps * theirs.float().norm()
    torch.testing.assert_close(ours, theirs, rtol=2 * eps, atol=2 * eps * theirs.float().abs().max().item())


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_the_operators_are_sound(generator, device, packed, threshold):
    x = inputs(generator).to(device)
    weight, scale = packed
    bias = torch.randn(ROWS, generator=generator).bfloat16().to(device)
    y = torch.randn(TOKENS, ROWS, generator=generator).bfloat16().to(device)
    torch.library.opcheck(torch.ops.quantflux.int8_linear.default, (x, weight, scale, bias, threshold))
    torch.library.opcheck(torch.ops.quantflux.int8_add_linear.default, (y, x, weight, scale, threshold))
    if triton_available(device):
        import quantflux.quant_core.kernels.int8_triton  # noqa: F401, for its operator
        from quantflux.quant_core.kernels.int8_quantize import quantize_rows

        codes, absmax, outliers = quantize_rows(x, weight, scale, threshold)
        apart = (x, *outliers) if outliers else (None, None, None)
        arguments = codes, absmax, weight, scale, bias, x.dtype, *apart
        torch.library.opcheck(torch.ops.quantflux.int8_product.default, arguments)


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_compiled_without_a_break(generator, device, packed, threshold):
    x = inputs(generator).to(device)[None]
    weight, scale = packed

    def product(x):
        y = torch.nn.functional.gelu(int8_linear(x, weight, scale, None, threshold))
        int8_add_linear(y, x, weight, scale, threshold)
        return y + 1

    with torch.no_grad():
        compiled = torch.compile(product, backend="aot_eager", fullgraph=True)(x)
        assert torch.equal(compiled, product(x))


def test_bitsandbytes_serves_where_there_is_no_gpu():
    assert not triton_available(torch.device("cpu"))


@pytest.fixture
def given(monkeypatch) -> list[torch.Tensor]:
    """What bitsandbytes is given to quantize."""
    given, quantize = [], torch.ops.bitsandbytes.int8_vectorwise_quant
    monkeypatch.setattr(
        torch.ops.bitsandbytes, "int8_vectorwise_quant", lambda x, *args: given.append(x) or quantize(x, *args)
    )
    return given


def test_bitsandbytes_is_given_values_in_the_order_of_rows(generator, packed, device, given):
    """Its kernel for cards reads them as they lie, whatever their strides."""
    x = inputs(generator, torch.float32).to(device)
    apart = x.t().contiguous().t()
    expected, y = (_int8_linear_bitsandbytes(one, *packed, None, 0.0) for one in (x, apart))
    assert torch.equal(y, expected)
    assert all(one.is_contiguous() for one in given) and torch.equal(*given)


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_bitsandbytes_is_not_given_nothing(packed, device, threshold, given):
    y = _int8_linear_bitsandbytes(torch.empty(0, COLUMNS, device=device), *packed, None, threshold)
    assert y.shape == (0, ROWS) and not given


def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ops.bitsandbytes.int8_vectorwise_quant(x.half(), 0.0)[:2]


@pytest.mark.parametrize("largest", [1.0, 900.0])
def test_a_product_is_scaled_as_by_bitsandbytes(generator, packed, device, largest):
    """To the same bits, also where tokens might leave float16's range and do not."""
    weight, scale = packed
    x = inputs(generator).to(device)
    codes, absmax = quantized(x * largest / x.abs().max())
    scale = scale * (1 if largest == 1 else 40)
    theirs = torch.ops.bitsandbytes.int8_scaled_mm(codes, weight, absmax, scale, dtype=torch.float16)
    assert theirs.isfinite().all()
    assert (absmax.max() * scale.max() * COLUMNS > FLOAT16_MAX) == (largest > 1)
    assert torch.equal(scaled_in_range(codes, weight, absmax, scale, None), theirs.float())


def test_a_product_beyond_float16_is_not_infinite(generator, packed, device):
    weight, scale = packed
    x = inputs(generator, torch.float32).to(device) * 1000
    x[3], x[4] = 0, 1e-3
    bias = torch.randn(ROWS, generator=generator).to(device)
    codes, absmax = quantized(x)
    scale = scale * 100
    theirs = torch.ops.bitsandbytes.int8_scaled_mm(codes, weight, absmax, scale, dtype=torch.float16)
    assert theirs.isinf().any()
    expected = (codes.double() @ weight.double().t()) * absmax[:, None] * scale / 127**2 + bias
    y = scaled_in_range(codes, weight, absmax, scale, bias)
    assert y.dtype == torch.float32
    # the CPU kernel's 1 / 127**2 is 2e-5 off
    torch.testing.assert_close(y.double(), expected, rtol=2**-10, atol=2**-10 * bias.abs().max().item())
    assert torch.equal(y[3], bias)


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.skipif(not torch.cuda.is_available(), reason="bitsandbytes' kernels for cards are those that need it")
def test_bitsandbytes_on_a_card_is_the_reference_beyond_float16(generator, packed, dtype, threshold):
    weight, scale = (one.cuda() for one in packed)
    x = (inputs(generator) * 1000).to("cuda", dtype)
    bias = torch.randn(ROWS, generator=generator).to(x)
    y = _int8_linear_bitsandbytes(x, weight, scale * 100, bias, threshold)
    expected = int8_linear_reference(x, weight, scale * 100, bias, threshold)
    assert y.isfinite().all() and y.dtype == dtype
    assert (y - expected).norm() < 0.01 * expected.norm()


@pytest.mark.parametrize("name", ["int8_triton.plain_triton_works", "_triton_available"])
def test_what_had_no_room_to_be_tried_is_tried_again(monkeypatch, device, name):
    """Else one full card would turn the kernels off for as long as the process runs."""
    pytest.importorskip("triton", reason="needs Triton")
    raised = []

    def full(*args, **kwargs):
        raised.append(args)
        raise torch.cuda.OutOfMemoryError("no room")

    if name == "_triton_available":
        ask, arguments = registered_module("kernels")._triton_available, (torch.device("cuda", 7),)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
        monkeypatch.setattr(registered_module("kernels.probe"), "probe", full)
    else:
        module = registered_module("kernels.int8_triton")
        ask, arguments = module.plain_triton_works, (device, True)
        monkeypatch.setattr(module, "int8_linear_triton", full)
    ask.cache_clear()
    for _ in range(2):
        with pytest.raises(torch.cuda.OutOfMemoryError):
            ask(*arguments)
    assert len(raised) == 2


def raising(*args, **kwargs):
    raise RuntimeError("no such instruction")


def zeros(x, weight, *args, **kwargs):
    return x.new_zeros(x.shape[0], weight.shape[0])


def right(x, weight, scale, bias=None, threshold=0.0, config=None):
    return int8_linear_reference(x, weight, scale, bias, threshold)


def blind_to_outliers(x, weight, scale, bias=None, threshold=0.0, config=None):
    return int8_linear_reference(x, weight, scale, bias)


@pytest.mark.parametrize(
    ("product", "outliers", "expected"),
    [(right, True, True), (right, False, True), (blind_to_outliers, False, True), (blind_to_outliers, True, False),
     (zeros, False, False), (raising, True, False)],
)  # fmt: skip
def test_kernels_are_used_that_give_what_the_reference_gives(monkeypatch, caplog, device, product, outliers, expected):
    pytest.importorskip("triton", reason="needs Triton")
    module = registered_module("kernels.int8_triton")
    monkeypatch.setattr(module, "int8_linear_triton", product)
    works = module.plain_triton_works.__wrapped__
    assert works(device, outliers) == expected
    assert ("bitsandbytes' " in caplog.text) != expected


def test_every_configuration_fits_the_shared_memory_of_its_cards():
    sizes = itertools.product((1, 256, 4352), [(21504, 3072), (3072, 15360), (3072, 3072), (4096, 10240)], (2, 4))
    for tokens, (rows, columns), itemsize in sizes:
        for capability, limit in (((9, 0), 227 * 1024), ((8, 6), 99 * 1024), ((12, 0), 99 * 1024)):
            config = choose(tokens, rows, columns, itemsize, capability)
            assert (config.block_m + config.block_n) * config.block_k * config.stages <= limit
            assert config.kernel == "plain" or capability == (9, 0)
