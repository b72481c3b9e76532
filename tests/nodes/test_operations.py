import pytest
import torch
from quantflux.nodes.host.operations import operations
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import is_packed, plain_tensors, quantize


@pytest.fixture
def weight():
    return torch.randn(32, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


def layer(weight, bias=None, compute_dtype=None):
    linear = operations(compute_dtype).Linear(64, 32)
    linear.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}), strict=False)
    return linear


def test_a_layer_allocates_nothing_before_it_is_loaded():
    linear = operations(None).Linear(1_000_000, 1_000_000)
    assert list(linear.parameters()) == []


def test_a_weight_of_another_shape_is_refused():
    with pytest.raises(RuntimeError, match=r"weight has shape \(32, 64\), expected \(32, 128\)"):
        operations(None).Linear(128, 32).load_state_dict({"weight": torch.zeros(32, 64)})


def test_a_missing_weight_is_reported_missing():
    missing, _ = operations(None).Linear(64, 32).load_state_dict({}, strict=False)
    assert missing == ["weight"]


@pytest.mark.parametrize(
    "config", [QuantConfig("nf4", double_quant=True), QuantConfig("int8")], ids=QuantConfig.describe
)
def test_moving_a_model_moves_every_part_of_its_packed_weights(weight, config):
    linear = layer(quantize(weight, config), bias=torch.zeros(32))
    torch.nn.Sequential(linear).to("meta")
    assert is_packed(linear.weight)
    assert {part.device.type for part in (*plain_tensors(linear.weight), linear.bias)} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_made_in_the_compute_dtype_and_given_back_in_the_inputs(weight, dtype):
    packed = quantize(weight, QuantConfig("nf4"))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    y = layer(packed, compute_dtype=torch.bfloat16)(x)
    assert y.dtype == dtype
    assert torch.equal(y, layer(packed)(x.bfloat16()).to(dtype))


def test_a_plain_weight_is_multiplied_as_the_host_does(weight):
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    y = layer(weight, compute_dtype=torch.float16)(x)
    assert torch.equal(y, torch.nn.functional.linear(x, weight.float()))


def test_the_hosts_hooks_on_weight_and_bias_are_applied(weight):
    linear = layer(quantize(weight, QuantConfig("nf4")), bias=torch.ones(32))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    plain = linear(x)
    linear.weight_function = [lambda w: w * 2]
    linear.bias_function = [lambda b: b * 3]
    torch.testing.assert_close(linear(x), (plain - 1) * 2 + 3)
