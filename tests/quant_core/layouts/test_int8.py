import pytest
import torch
from bitsandbytes.nn import Int8Params, Linear8bitLt
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import ConfigError
from quantflux.quant_core.layouts import dequantize, plain_tensors, quantize
from quantflux.quant_core.layouts.int8 import require_int8
from quantflux.quant_core.linear import linear

ROWS, COLUMNS = 96, 256


@pytest.fixture
def weight(generator, device):
    return (torch.randn(ROWS, COLUMNS, generator=generator) * 0.02).to(torch.bfloat16).to(device)


@pytest.fixture
def outlying(generator, device):
    """Inputs with three columns far beyond the usual threshold."""
    x = torch.randn(2, 33, COLUMNS, generator=generator)
    x[..., [5, 77, 200]] *= 20
    return x.to(device)


def linear_8bit(weight, threshold, bias=None) -> Linear8bitLt:
    layer = Linear8bitLt(COLUMNS, ROWS, bias=bias is not None, has_fp16_weights=False, threshold=threshold)
    # quantized when it moves: from the CPU, whatever the device
    layer.weight = Int8Params(weight.to(torch.float16).cpu(), requires_grad=False, has_fp16_weights=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias.cpu(), requires_grad=False)
    return layer.to(weight.device).eval()


def test_packed_rows_and_scales_are_those_of_bitsandbytes(weight):
    data, scale = plain_tensors(quantize(weight, QuantConfig("int8")))
    layer = linear_8bit(weight, 0.0)
    assert torch.equal(data, layer.weight.data)
    assert torch.equal(scale, layer.weight.SCB)


@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_product_is_that_of_linear8bitlt(weight, outlying, threshold, dtype, generator, device):
    bias = torch.randn(ROWS, generator=generator).to(dtype).to(device)
    x = outlying.to(dtype)
    ours = linear(x, quantize(weight, QuantConfig("int8", int8_threshold=threshold)), bias)
    with torch.no_grad():
        theirs = linear_8bit(weight, threshold, bias)(x)
    assert ours.dtype == dtype
    if device.type == "cpu":
        assert torch.equal(ours, theirs)
    else:  # bitsandbytes rounds to float16 in between; tests/quant_core/kernels has the bounds
        assert (ours.float() - theirs.float()).norm() <= max(1e-3, torch.finfo(dtype).eps) * theirs.float().norm()


def test_the_threshold_keeps_outliers_from_spoiling_the_rest(weight, outlying):
    expected = outlying @ weight.float().T

    def error(threshold):
        packed = quantize(weight, QuantConfig("int8", int8_threshold=threshold))
        return (linear(outlying, packed) - expected).norm() / expected.norm()

    assert error(6.0) < 0.01
    assert error(6.0) < error(0.0) / 2


@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_inputs_beyond_float16_stay_finite(weight, threshold, device):
    x = torch.ones(4, COLUMNS, device=device, dtype=torch.bfloat16)
    x[1, 7] = 1e6
    y = linear(x, quantize(weight, QuantConfig("int8", int8_threshold=threshold)))
    assert y.isfinite().all()
    if threshold:
        # an outlier is multiplied at its true size
        expected = x.float() @ weight.float().T
        assert (y.float() - expected).norm() / expected.norm() < 0.02


def test_zero_rows_give_the_bias(weight, device):
    bias = torch.arange(ROWS, device=device, dtype=torch.float32)
    y = linear(torch.zeros(3, COLUMNS, device=device), quantize(weight, QuantConfig("int8")), bias)
    assert torch.equal(y, bias.expand(3, -1))


def test_dequantized_rows_are_near_the_weight(weight):
    packed = quantize(weight, QuantConfig("int8"))
    error = (dequantize(packed, torch.float32) - weight.float()).norm() / weight.float().norm()
    assert error < 0.0095


def test_a_card_older_than_turing_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match="7.0.*nf4"):
        require_int8(torch.device("cuda:0"), capability=(7, 0))
    require_int8(torch.device("cuda:0"), capability=(7, 5))
    require_int8(torch.device("cpu"))
