"""The GELUs of our models are ours, and those of the models beside them the host's."""

import torch
from host_models import stock_flux
from quantflux.nodes.dequantize import QuantFluxDequantize
from quantflux.nodes.host.activations import Gelu, use_own_gelu
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.operations import operations
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import quantize
from quantflux.quant_core.source import flux_source
from quantize_node import NF4, quantize_model


def gelus(patcher) -> list[type]:
    return [type(module) for module in patcher.model.diffusion_model.modules() if isinstance(module, torch.nn.GELU)]


def model_of(flux_file, precision="nf4"):
    return load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig(precision)))


def test_every_gelu_of_a_loaded_model_is_ours_and_of_a_dequantized_one_torchs(flux_file):
    packed = model_of(flux_file)
    blocks = packed.model.diffusion_model
    assert len(gelus(packed)) == 2 * len(blocks.double_blocks) + len(blocks.single_blocks)
    assert set(gelus(packed)) == {Gelu}
    (plain,) = QuantFluxDequantize.execute("auto", model=packed).args[:1]
    assert gelus(plain) == [torch.nn.GELU] * len(gelus(packed))
    assert set(gelus(packed)) == {Gelu}


def test_quantize_model_leaves_those_of_the_model_before_it(flux_file):
    stock = stock_flux(flux_file)
    packed = quantize_model(stock, NF4)
    assert set(gelus(packed)) == {Gelu} and set(gelus(stock)) == {torch.nn.GELU}
    assert len(gelus(packed)) == len(gelus(stock))


def test_a_model_that_is_not_packed_keeps_those_of_the_host(flux_file):
    assert set(gelus(model_of(flux_file, "none"))) == {torch.nn.GELU}


def test_gelu_of_another_form_stays_as_it_is():
    class Other(torch.nn.GELU):
        pass

    packed = operations(None).Linear(40, 40, False)
    packed.hold(quantize(torch.eye(40), NF4))
    forms = torch.nn.GELU(), torch.nn.GELU(approximate="tanh"), Other(approximate="tanh")
    model = torch.nn.Sequential(packed, *forms)
    x = torch.linspace(-3, 3, 40)[None]
    expected = model(x)
    use_own_gelu(model)
    assert [type(module) for module in model][1:] == [torch.nn.GELU, Gelu, Other]
    assert torch.equal(model(x), expected)
