"""GELU and RMSNorm between the layers of our models are ours, and those of the models beside them the host's."""

import copy

import pytest
import torch
from comfy.ldm.flux.layers import QKNorm
from flux_predictions import predict
from host_models import stock_flux
from quantflux.nodes.dequantize import QuantFluxDequantize
from quantflux.nodes.host import between
from quantflux.nodes.host.between import Gelu, Ours, RMSNorm, use_ours
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.operations import operations
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.kernels import rms_norm as kernel
from quantflux.quant_core.kernels.rms_norm import rms_norm_reference
from quantflux.quant_core.layouts import quantize
from quantflux.quant_core.source import flux_source
from quantize_node import NF4, quantize_model
from small_models import save_native_flux


def gelus(patcher) -> list[type]:
    return [type(module) for module in patcher.model.diffusion_model.modules() if isinstance(module, torch.nn.GELU)]


def norms(patcher) -> list[type]:
    found = [module for module in patcher.model.diffusion_model.modules() if isinstance(module, QKNorm)]
    return [type(norm) for module in found for norm in (module.query_norm, module.key_norm)]


def is_ours(norm: type) -> bool:
    return issubclass(norm, RMSNorm)


def model_of(flux_file, precision="nf4", **fields):
    return load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig(precision, **fields)))


def test_all_of_a_loaded_model_are_ours_and_of_a_dequantized_one_the_hosts(flux_file):
    packed = model_of(flux_file)
    blocks = packed.model.diffusion_model
    assert gelus(packed) == [Gelu] * (2 * len(blocks.double_blocks) + len(blocks.single_blocks))
    assert len(norms(packed)) == 2 * len(gelus(packed)) and all(map(is_ours, norms(packed)))
    (plain,) = QuantFluxDequantize.execute("auto", model=packed).args[:1]
    assert set(gelus(plain)) == {torch.nn.GELU} and len(norms(plain)) == len(norms(packed))
    assert not any(isinstance(module, Ours) for module in plain.model.modules())
    assert set(gelus(packed)) == {Gelu} and all(map(is_ours, norms(packed)))


def test_quantize_model_leaves_those_of_the_model_before_it(flux_file):
    stock = stock_flux(flux_file)
    packed = quantize_model(stock, NF4)
    assert set(gelus(packed)) == {Gelu} and all(map(is_ours, norms(packed)))
    assert set(gelus(stock)) == {torch.nn.GELU} and not any(map(is_ours, norms(stock)))
    assert len(gelus(packed)) == len(gelus(stock)) and len(norms(packed)) == len(norms(stock))
    again = quantize_model(packed, NF4)
    assert norms(again) == norms(packed)


def test_a_model_that_is_not_packed_keeps_those_of_the_host(flux_file):
    model = model_of(flux_file, "none")
    assert set(gelus(model)) == {torch.nn.GELU} and not any(map(is_ours, norms(model)))


@pytest.fixture
def norm(flux_file) -> RMSNorm:
    """A norm of queries, whose weights are not all the same."""
    norm = copy.deepcopy(model_of(flux_file).model.diffusion_model.double_blocks[0].img_attn.norm.query_norm)
    (weight,) = norm.parameters()
    weight.data = torch.linspace(-1, 2, weight.numel())
    return norm


def inputs(norm) -> torch.Tensor:
    (weight,) = norm.parameters()
    return torch.randn(2, 3, 5, *weight.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls(monkeypatch) -> list[float | None]:
    """The eps of each call of the kernel, whose place its reference takes on every device."""
    calls = []
    monkeypatch.setattr(between, "can_normalize", lambda x, weight: weight.shape == x.shape[-1:])
    monkeypatch.setattr(between, "rms_norm", lambda *args: calls.append(args[2]) or rms_norm_reference(*args))
    return calls


def test_the_kernel_is_given_what_the_host_normalizes_by(norm, calls):
    x = 1e-3 * inputs(norm)  # so small that eps matters
    y = norm(x)
    assert len(calls) == 1
    between.give_back(norm)
    assert not isinstance(norm, Ours)
    assert torch.equal(y, norm(x)) and len(calls) == 1


def test_the_kernel_takes_all_that_a_model_in_16_bit_gives_to_it(flux_model, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(kernel, "triton_available", lambda device: True)
    monkeypatch.setattr(between, "rms_norm", lambda *args: calls.append(args) or rms_norm_reference(*args))
    save_native_flux(copy.deepcopy(flux_model).bfloat16(), tmp_path / "flux.safetensors")
    model = model_of(tmp_path / "flux.safetensors", compute_dtype=torch.bfloat16)
    predict(model, dtype=torch.bfloat16)
    blocks = model.model.diffusion_model
    assert len(calls) == len(norms(model)) == 4 * len(blocks.double_blocks) + 2 * len(blocks.single_blocks)


def test_a_compiled_graph_takes_the_hosts(norm, calls):
    x = inputs(norm)
    with torch.inference_mode():
        y = torch.compile(norm, backend="eager", fullgraph=True)(x)
    assert not calls
    between.give_back(norm)
    assert torch.equal(y, norm(x))


def test_an_offloaded_weight_is_brought_to_the_kernel(norm, monkeypatch):
    """A picture is the same to the bit, wherever its model lies."""
    given = []
    monkeypatch.setattr(between, "can_normalize", lambda x, weight: x.device == weight.device)
    monkeypatch.setattr(between, "rms_norm", lambda *args: given.append(args) or args[0])
    x = inputs(norm).to("meta")
    assert norm(x) is x
    ((_, weight, _),) = given
    assert weight.device == x.device and weight.shape == x.shape[-1:]
    assert next(norm.parameters()).device == torch.device("cpu")


def test_a_gelu_is_torchs_where_the_kernel_is_not(flux_file, monkeypatch):
    seen = []
    monkeypatch.setattr(torch.nn.GELU, "forward", lambda self, x: seen.append(x) or x)
    gelu = next(m for m in model_of(flux_file).model.diffusion_model.modules() if isinstance(m, Gelu))
    x = torch.ones(2, 4)
    assert gelu(x) is x and len(seen) == 1


def test_a_patched_weight_is_the_hosts_to_apply(norm, calls):
    if not hasattr(norm, "weight_function"):
        pytest.skip("this host patches the weight itself")
    norm.weight_function = [lambda weight: 2 * weight]
    x = inputs(norm)
    y = norm(x)
    assert not calls
    norm.weight_function = []
    torch.testing.assert_close(y, 2 * norm(x))


def test_gelu_of_another_form_stays_as_it_is():
    class Other(torch.nn.GELU):
        pass

    packed = operations(None).Linear(40, 40, False)
    packed.hold(quantize(torch.eye(40), NF4))
    forms = torch.nn.GELU(), torch.nn.GELU(approximate="tanh"), Other(approximate="tanh")
    model = torch.nn.Sequential(packed, *forms)
    x = torch.linspace(-3, 3, 40)[None]
    expected = model(x)
    use_ours(model)
    assert [type(module) for module in model][1:] == [torch.nn.GELU, Gelu, Other]
    assert torch.equal(model(x), expected)
