"""4-bit weights times few rows: the kernel against its reference, and when it is chosen."""

import pytest
import torch
from interpreter import INTERPRETED, run_interpreted
from quantflux.quant_core import linear as products
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.kernels import triton_available
from quantflux.quant_core.kernels.few_rows import (
    MAX_ROWS,
    can_multiply_few,
    few_rows_linear,
    few_rows_linear_reference,
    few_rows_pay,
)
from quantflux.quant_core.layouts import dequantize, quantize
from quantflux.quant_core.lora import LowRank
from registered import registered_module

GPU = torch.cuda.is_available() and triton_available(torch.device("cuda", 0))
CONFIGS = [
    QuantConfig("nf4"),
    QuantConfig("fp4"),
    QuantConfig("nf4", double_quant=True),
    QuantConfig("fp4", double_quant=True, blocksize=256),
    QuantConfig("nf4", blocksize=32),
]
# the first ends within a program; the last has several blocks of nested statistics
SHAPES = [(37, 1024), (1, 2048), (24, 3072)]
# the interpreter cuts bfloat16 off instead of rounding
HALF = torch.float16 if INTERPRETED else torch.bfloat16


@pytest.mark.skipif(GPU or INTERPRETED, reason="the kernel is tested in this process")
def test_the_kernel_holds_in_the_interpreter(tmp_path):
    run_interpreted(__file__, tmp_path)


def arguments(x, weight, bias) -> tuple:
    params = weight._params
    return (
        x, weight._qdata, params.scale, *params.orig_shape, params.blocksize, params.quant_type, bias,
        params.absmax_8bit, params.absmax_code, params.absmax_offset,
    )  # fmt: skip


def made(shape, tokens, config, generator, device, dtype=torch.float32) -> tuple:
    """Inputs, a packed weight and a bias."""
    weight = quantize((torch.randn(shape, generator=generator) * 0.02).to(device), config)
    x = torch.randn(tokens, shape[1], generator=generator).to(device, dtype)
    return x, weight, torch.randn(shape[0], generator=generator).to(device, dtype)


def error(y, expected) -> float:
    return ((y.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_the_reference_is_the_product_with_the_dequantized_weight(config, generator):
    x, weight, bias = made((24, 1024), 3, config, generator, "cpu")
    expected = torch.nn.functional.linear(x, dequantize(weight, torch.float32), bias)
    assert error(few_rows_linear_reference(*arguments(x, weight, bias)), expected) < 1e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_the_kernel_multiplies_as_the_reference_does(config, shape, generator, kernel_device):
    for tokens, biased in ((1, True), (MAX_ROWS, False)):
        x, weight, bias = made(shape, tokens, config, generator, kernel_device)
        inputs = arguments(x, weight, bias if biased else None)
        y, expected = few_rows_linear(*inputs), few_rows_linear_reference(*inputs)
        assert y.shape == expected.shape == (tokens, shape[0])
        assert error(y, expected) < 1e-6
        y, expected = (
            f(x.to(HALF), *inputs[1:7], None, *inputs[8:]) for f in (few_rows_linear, few_rows_linear_reference)
        )
        assert y.dtype == HALF
        # sums in another order may round to the next value
        torch.testing.assert_close(y, expected, rtol=torch.finfo(HALF).eps, atol=1e-5)


def test_rows_that_lie_apart_are_multiplied_as_if_they_did_not(generator, kernel_device):
    x, weight, bias = made((16, 1024), 6, QuantConfig("nf4"), generator, kernel_device, HALF)
    assert torch.equal(
        few_rows_linear(*arguments(x[::3], weight, bias)), few_rows_linear(*arguments(x[::3].clone(), weight, bias))
    )


def test_the_operator_has_the_schema_and_shapes_that_it_says(generator, kernel_device):
    inputs = arguments(*made((16, 1024), 2, QuantConfig("nf4", double_quant=True), generator, kernel_device))
    few_rows_linear(*inputs)
    torch.library.opcheck(
        torch.ops.quantflux.few_rows_linear.default, inputs, test_utils=("test_schema", "test_faketensor")
    )


def test_the_layout_takes_the_kernel_for_few_rows_of_16_bit_and_for_no_others(generator, kernel_device, monkeypatch):
    module = registered_module("layouts.four_bit")
    seen = []
    monkeypatch.setattr(module, "few_rows_pay", lambda device: True)
    monkeypatch.setattr(module, "few_rows_linear", lambda *inputs: seen.append(1) or few_rows_linear(*inputs))
    _, weight, bias = made((16, 1024), 1, QuantConfig("nf4"), generator, kernel_device, HALF)
    low_rank = LowRank(
        torch.randn(16, 1024, generator=generator).to(kernel_device, HALF),
        torch.randn(16, 16, generator=generator).to(kernel_device, HALF),
    )
    for shape, dtype, lora, taken in (
        ((1, 1024), HALF, None, True),
        ((2, MAX_ROWS // 2, 1024), HALF, low_rank, True),
        ((MAX_ROWS + 1, 1024), HALF, None, False),
        ((0, 1024), HALF, None, False),
        ((1, 1024), torch.float32, None, False),
    ):
        seen.clear()
        x = torch.randn(shape, generator=generator).to(kernel_device, dtype)
        y = products.linear(x, weight, bias, lora)
        expected = torch.nn.functional.linear(x.float(), dequantize(weight, torch.float32), bias.float())
        expected = expected if lora is None else expected + low_rank.of(x, None).float()
        assert bool(seen) == taken and y.shape == expected.shape and y.dtype == dtype
        assert not y.numel() or error(y, expected) < 1e-2


def test_weights_that_the_kernel_does_not_take_are_known():
    assert can_multiply_few((3, 3072), 64)
    assert not can_multiply_few((3, 1536), 64)
    assert not can_multiply_few((3, 1024), 2048)


def test_a_device_where_it_was_not_measured_keeps_bitsandbytes():
    assert not few_rows_pay(torch.device("cpu"))
