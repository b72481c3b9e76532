import copy

import pytest
import torch
from flux_predictions import predict
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.operations import operations
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import is_packed, plain_tensors, quantize
from quantflux.quant_core.lora import LowRank
from quantflux.quant_core.source import flux_source


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


CONFIGS = [QuantConfig("nf4"), QuantConfig("fp4", double_quant=True), QuantConfig("int8"), QuantConfig("none")]


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_a_deep_copy_is_the_same_bits_in_tensors_of_its_own(weight, config):
    packed = weight if config.precision == "none" else quantize(weight, config)
    linear = layer(packed, bias=torch.ones(32), compute_dtype=torch.bfloat16)
    linear.low_rank = LowRank(torch.ones(2, 64), torch.ones(32, 2))
    linear.weight_function = [lambda w: w * 2]
    linear.pinned_block = torch.zeros(8, dtype=torch.uint8)
    linear.itself = linear.forward
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    twice = copy.deepcopy(torch.nn.ModuleList([linear, linear]))
    made = twice[0]
    assert made is twice[1] is made.itself.__self__ and type(made) is type(linear)
    assert torch.equal(made(x), linear(x))
    assert vars(made).keys() == vars(linear).keys() - {"pinned_block"} and made.pinned_block is None
    assert made._number != linear._number
    pairs = list(zip(linear.state_dict().values(), made.state_dict().values(), strict=True))
    assert all(torch.equal(ours, theirs) and ours.data_ptr() != theirs.data_ptr() for ours, theirs in pairs)
    assert type(made.weight) is type(linear.weight) and isinstance(made.weight, torch.nn.Parameter)
    for part in (*plain_tensors(made.weight), made.bias, made.low_rank.up):
        part.zero_()
    assert not torch.equal(made(x), linear(x))


def test_layers_that_share_a_weight_share_it_as_copies(weight):
    one, other = (layer(quantize(weight, QuantConfig("nf4"))) for _ in range(2))
    other.hold(one.weight)
    made = copy.deepcopy(torch.nn.ModuleList([one, other]))
    assert made[0].weight is made[1].weight is not one.weight


class Wrapper:
    """As other nodes keep a part of the model that they wrap; hosts may copy it with a patcher's options."""

    def __init__(self, transformer):
        self.transformer = transformer

    def __call__(self, apply_model, options):
        return apply_model(options["input"], options["timestep"], **options["c"])


@pytest.mark.parametrize(
    "config", [QuantConfig("nf4", double_quant=True), QuantConfig("int8")], ids=QuantConfig.describe
)
def test_a_model_whose_options_hold_its_blocks_is_cloned_and_copied(flux_file, config):
    model = load_flux_model(flux_source(open_checkpoint(flux_file), config))
    expected = predict(model)
    clone = model.clone()
    clone.set_model_unet_function_wrapper(Wrapper(model.model.diffusion_model))
    clone = clone.clone()
    assert torch.equal(predict(clone), expected)
    original = model.model.diffusion_model
    model.model.diffusion_model = copy.deepcopy(original)
    assert torch.equal(predict(model, as_it_lies=True), expected)
    pointers = [{part.data_ptr() for t in m.parameters() for part in plain_tensors(t)} for m in (original, model.model)]
    assert pointers[0].isdisjoint(pointers[1])
