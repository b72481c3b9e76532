"""What the peers are given is what they would make themselves, so that they are measured and not our mistakes."""

import compare
import diffusers
import peer_gguf
import pytest
import small_models
import torch
from flux_predictions import predict, relative_error
from peer_diffusers import HostInputs, beside, write
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.source import flux_source
from variants import VARIANTS


def test_all_names_that_are_measured_by_default_or_asked_for_by_all_are_variants():
    assert {*compare.DEFAULT, *compare.ALL} <= VARIANTS.keys()


@pytest.mark.parametrize("kind", peer_gguf.KINDS)
def test_blocks_are_those_of_the_package_gguf_bit_for_bit(kind):
    gguf = pytest.importorskip("gguf", reason="the package gguf, which made the expected blocks, is not installed")
    weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(0)) * 0.02
    weight[0] = weight[0].sign()  # a block of nothing but ties
    weight[1, :32] = 0
    weight[2, :64] *= 1e-6
    weight[3, 5] = -weight[3].abs().max() * 100
    weight = weight.bfloat16()
    expected = gguf.quants.quantize(weight.float().numpy(), gguf.GGMLQuantizationType[kind.upper()])
    # a GPU divides and finds the largest in other ways
    found = peer_gguf.quantize(weight.to("cuda" if torch.cuda.is_available() else "cpu"), kind)
    assert torch.equal(found.cpu(), torch.from_numpy(expected))


@pytest.fixture(scope="module")
def flux_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("peers") / "flux.safetensors"
    small_models.save_native_flux(small_models.random_flux().float(), path)
    return path


@pytest.mark.skipif(torch.cuda.is_available(), reason="the host computes in bfloat16 on a GPU")
def test_diffusers_predicts_in_the_hosts_place_what_the_host_predicts(flux_file):
    write(str(flux_file), "bf16")
    transformer = diffusers.FluxTransformer2DModel.from_pretrained(
        beside(str(flux_file), "bf16"), torch_dtype=torch.float32
    )
    with torch.inference_mode():
        model = load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig("none", torch.float32)))
        expected = predict(model)
        model.model.diffusion_model = HostInputs(transformer)
        assert relative_error(predict(model, as_it_lies=True), expected) < 1e-4
