"""Quantize Model behind the host's merging nodes: what they blend in is packed, and LoRAs stay."""

import json

import folder_paths
import loras
import pytest
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple, ModelSubtract
from flux_predictions import predict, relative_error
from host_models import with_loras
from other_dits import denoised, loaded_by_host, sd3_tensors
from quantflux.nodes.dequantize import QuantFluxDequantize
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.operations import packed_linears
from quantflux.nodes.save import SINGLE_FILE, QuantFluxSave
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.source import flux_source
from quantize_node import NF4, quantize_model

CONFIGS = [NF4, QuantConfig("int8", torch.float32, skip_modules=("joint_blocks.0",))]
RATIO = 0.25


def others() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    return {name: t + 0.1 * torch.randn(t.shape, generator=generator) for name, t in sd3_tensors().items()}


def blended(mine, theirs, mine_by, theirs_by) -> dict[str, torch.Tensor]:
    """In the order in which the host rounds; it merges parameters, and the table of positions is none."""
    return {
        name: tensor if name == "pos_embed" else tensor * mine_by + theirs_by * theirs[name]
        for name, tensor in mine.items()
    }


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_a_merged_model_is_packed_as_one_with_the_blended_weights(config):
    first, second = loaded_by_host(sd3_tensors()), loaded_by_host(others())
    ours = quantize_model(ModelMergeSimple().merge(first, second, RATIO)[0], config)
    twin = quantize_model(loaded_by_host(blended(sd3_tensors(), others(), RATIO, 1 - RATIO)), config)
    assert ours.patches == {}
    assert packed_linears(ours.model).keys() == packed_linears(twin.model).keys() != set()
    assert torch.equal(denoised(ours), denoised(twin))
    # the merged model goes on being what it was
    assert torch.equal(denoised(first), denoised(loaded_by_host(sd3_tensors())))


def test_a_difference_between_models_is_packed_too():
    ours = quantize_model(ModelSubtract().merge(loaded_by_host(sd3_tensors()), loaded_by_host(others()), 0.5)[0])
    twin = quantize_model(loaded_by_host(blended(sd3_tensors(), others(), 0.5, -0.5)))
    assert ours.patches == {}
    assert torch.equal(denoised(ours), denoised(twin))


def test_loras_below_a_merge_are_packed_with_it_and_those_above_stay(flux_file, tmp_path, monkeypatch):
    packed = [load_flux_model(flux_source(open_checkpoint(flux_file), CONFIGS[0])) for _ in range(2)]
    first, second = (QuantFluxDequantize.execute("auto", model=model).args[0] for model in packed)
    below = with_loras(first, loras.kohya())
    merge = ModelMergeSimple().merge(below, second, 0.5)[0]
    above = with_loras(merge, loras.peft())
    ours = quantize_model(above)
    assert set(ours.patches) == set(with_loras(second, loras.peft()).patches)
    assert all(layer.low_rank is None for layer in packed_linears(quantize_model(merge).model).values())
    # the merge is of equal weights but for half of the LoRA below
    half = with_loras(second, loras.kohya(), strength=0.5)
    expected = predict(with_loras(half, loras.peft()))
    assert relative_error(predict(ours), expected) < 0.015
    assert relative_error(predict(with_loras(second, loras.peft())), expected) > 0.03
    assert relative_error(predict(half), expected) > 0.03
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    QuantFluxSave.execute("merged", SINGLE_FILE, model=quantize_model(merge))
    (path,) = tmp_path.rglob("*.safetensors")
    saved = open_checkpoint(str(path))
    assert torch.equal(predict(load_flux_model(flux_source(saved))), predict(quantize_model(merge)))
    # it came of several
    assert json.loads(saved.metadata["quantflux"])["source"] == ""
