"""Redux: a style model of its real sizes (they are fixed in the host) lengthens the text of a small FLUX."""

from types import SimpleNamespace

import comfy.sample
import comfy.sd
import pytest
import small_models
import torch
from flux_predictions import relative_error
from quantflux.nodes.host.dequantized import dequantized_model
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.source import flux_source
from safetensors.torch import save_file

import nodes

VISION, TEXT, PATCHES = 1152, 4096, 9


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    path = tmp_path_factory.mktemp("flux") / "flux.safetensors"
    small_models.save_native_flux(small_models.random_flux(joint_attention_dim=TEXT).float(), path)
    return load_flux_model(flux_source(open_checkpoint(path), QuantConfig("nf4", torch.float32)))


@pytest.fixture(scope="module")
def unpacked(flux):
    return dequantized_model(flux)


@pytest.fixture(scope="module")
def style_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("style") / "redux.safetensors"
    generator = torch.Generator().manual_seed(1)
    shapes = {"redux_up": (3 * TEXT, VISION), "redux_down": (TEXT, 3 * TEXT)}
    tensors = {}
    for name, shape in shapes.items():
        tensors[f"{name}.weight"] = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        tensors[f"{name}.bias"] = torch.zeros(shape[0])
    save_file(tensors, path)
    return comfy.sd.load_style_model(str(path))


def drawn(model, conditioning):
    latent = torch.zeros(1, 16, 8, 8)
    noise = comfy.sample.prepare_noise(latent, 7)
    return comfy.sample.sample(
        model, noise, 2, 1.0, "euler", "simple", conditioning, conditioning, latent, seed=7, disable_pbar=True
    )


@pytest.mark.parametrize("strength, strength_type", [(1.0, "multiply"), (0.5, "multiply"), (0.5, "attn_bias")])
def test_a_style_model_does_to_packed_weights_as_to_plain_ones(flux, unpacked, style_model, strength, strength_type):
    generator = torch.Generator().manual_seed(2)
    plain = [[torch.randn(1, 16, TEXT, generator=generator), {"pooled_output": torch.randn(1, 64), "guidance": 3.5}]]
    seen = SimpleNamespace(last_hidden_state=torch.randn(1, PATCHES, VISION, generator=generator))
    # the node reads an output as get_cond() of the host's StyleModel does
    (styled,) = nodes.StyleModelApply().apply_stylemodel(plain, style_model, seen, strength, strength_type)
    assert styled[0][0].shape == (1, 16 + PATCHES, TEXT)
    ours = drawn(flux, styled)
    apart = relative_error(ours, drawn(unpacked, styled))
    assert apart <= 2e-3
    assert relative_error(ours, drawn(flux, plain)) > max(1e-3, 100 * apart)
