"""The Memory Report node, on models that the host's own classes hold."""

import itertools

import comfy.model_management
import comfy.sd
import loras
import other_dits
import pytest
import torch
from flux_predictions import predict
from quantflux.nodes.dequantize import QuantFluxDequantize
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.text_encoder import load_flux_clip
from quantflux.nodes.memory_report import QuantFluxMemoryReport
from quantflux.quant_core import memory
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import plain_tensors
from quantflux.quant_core.source import clip_l_source, flux_source, t5_source
from safetensors.torch import load_file
from tiny_workflow import MODELS

CONFIGS = [
    QuantConfig("nf4"),
    QuantConfig("fp4", double_quant=True, skip_modules=("linear1",)),
    QuantConfig("int8"),
    QuantConfig("none"),
]


def model_of(flux_file, config=CONFIGS[0]):
    return load_flux_model(flux_source(open_checkpoint(flux_file), config))


def clip_of(text_files, config=CONFIGS[0]):
    t5 = t5_source(open_checkpoint(text_files / "t5.safetensors"), config)
    return load_flux_clip(t5, clip_l_source(open_checkpoint(text_files / "clip_l.safetensors")))


def report(**inputs):
    output = QuantFluxMemoryReport.execute(**inputs)
    shown, chart = output.args
    (figures,) = output.ui["quantflux"]
    (text,) = output.ui["text"]
    assert shown == f"```\n{text}\n```"
    assert chart.dtype == torch.float32 and chart.shape[0] == 1 and chart.shape[3] == 3
    assert 0 <= chart.min() and chart.max() <= 1
    assert figures["bytes"] == sum(one["nbytes"] for one in figures["held"])
    return text, figures


def nbytes_of(module) -> int:
    """The sum over a module's tensors."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    return sum(part.nbytes for tensor in tensors for part in plain_tensors(tensor))


def held(figures, component=None, group=None) -> int:
    wanted = {"component": component, "group": group}
    return sum(
        one["nbytes"] for one in figures["held"] if all(value in (None, one[key]) for key, value in wanted.items())
    )


@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_totals_are_the_sums_over_tensors(flux_file, text_files, config):
    model, clip = model_of(flux_file, config), clip_of(text_files, config)
    _, figures = report(model=model, clip=clip)
    assert held(figures, "Transformer") == nbytes_of(model.model)
    assert held(figures, "T5") == nbytes_of(clip.cond_stage_model.t5xxl)
    assert held(figures, "CLIP-L") == nbytes_of(clip.cond_stage_model.clip_l)
    assert figures["bytes"] == nbytes_of(model.model) + nbytes_of(clip.cond_stage_model)
    parameters = list(model.model.diffusion_model.parameters())
    assert memory.model_nbytes(parameters)[0] == nbytes_of(model.model.diffusion_model)
    packed = held(figures, "Transformer", memory.PACKED)
    assert (packed > 0) == (held(figures, "Transformer", memory.STATISTICS) > 0) == (config.precision != "none")


def test_the_16_bit_size_does_not_depend_on_the_precision(flux_file):
    sizes = {report(model=model_of(flux_file, config))[1]["bytes_16bit"] for config in CONFIGS}
    assert len(sizes) == 1


def test_skipped_layers_are_told_from_packed_ones(flux_file):
    _, figures = report(model=model_of(flux_file, QuantConfig("nf4", skip_modules=("img_in", "txt_in"))))
    # 256 rows of 64 channels and 256 of 128, in the float32 of the file
    assert held(figures, group=memory.SKIPPED) == 4 * 256 * (64 + 128)


def test_scaled_fp8_that_the_host_wraps_counts_with_its_scales():
    tensors = other_dits.sd3_tensors(torch.bfloat16)
    layers = [f"joint_blocks.{block}.x_block.mlp.fc1" for block in (0, 1)]
    model = other_dits.scaled_float8_by_host(tensors, layers)
    _, figures = report(model=model)
    numbers = sum(tensors[f"{name}.weight"].numel() for name in layers)
    assert held(figures, group=memory.PACKED) == numbers
    assert held(figures, group=memory.STATISTICS) == 4 * len(layers)
    (packed,) = (one for one in figures["held"] if one["group"] == memory.PACKED)
    assert packed["nbytes_16bit"] == 2 * numbers
    _, plain = report(model=other_dits.loaded_by_host(tensors))
    assert figures["bytes_16bit"] == plain["bytes_16bit"]
    of_parameters, _ = memory.model_nbytes(model.model.parameters())
    assert of_parameters + sum(buffer.nbytes for buffer in model.model.buffers()) == figures["bytes"]


def test_any_vae_is_reported(flux_file):
    (path,) = MODELS["vae"]
    vae = comfy.sd.VAE(load_file(path))
    text, figures = report(vae=vae)
    assert figures["bytes"] == nbytes_of(vae.first_stage_model) > 0
    assert held(figures, group=memory.CONVOLUTIONS) > 0
    assert "VAE" in text


def test_nothing_connected_tells_of_the_process():
    text, figures = report()
    assert figures["bytes"] == 0
    assert figures["process"]["Main memory"]["this process"] > 2**20
    assert "available" in text


def test_lora_branches_count_once_they_are_attached(flux_file):
    model = model_of(flux_file)
    before = report(model=model)[1]["bytes"]
    more = comfy.sd.load_lora_for_models(model, None, loras.kohya(), 1.0, 0.0)[0]
    predict(more)
    _, figures = report(model=more)
    branches = held(figures, group=memory.LORA)
    assert branches == more.model_size() - model.model_size() > 0
    assert figures["bytes"] == before + branches


def test_the_weights_that_a_baked_lora_replaces_are_counted(flux_file):
    (plain, _) = QuantFluxDequantize.execute("auto", model=model_of(flux_file)).args
    before = report(model=plain)[1]["bytes"]
    more = comfy.sd.load_lora_for_models(plain, None, loras.kohya(), 1.0, 0.0)[0]
    predict(more)
    _, figures = report(model=more)
    assert held(figures, group=memory.ORIGINALS) == sum(backup.weight.nbytes for backup in more.backup.values()) > 0
    assert figures["bytes"] == before + held(figures, group=memory.ORIGINALS)


def test_packed_and_dequantized_are_two_models(flux_file):
    packed = model_of(flux_file)
    (plain, _) = QuantFluxDequantize.execute("auto", model=packed).args
    _, figures = report(model=plain)
    assert held(figures, group=memory.PACKED) == 0
    assert figures["bytes"] == nbytes_of(plain.model)
    assert figures["bytes"] > 2 * report(model=packed)[1]["bytes"]


@pytest.mark.skipif(not memory._file_maps(), reason="only Linux says what is mapped")
def test_a_cpu_model_says_what_stays_in_its_file(flux_file):
    """Read from the file as they are; those that are quantized, and those that the host copied, are not in it."""
    if torch.cuda.is_available():
        pytest.skip("the model is on the GPU")
    _, figures = report(model=model_of(flux_file, QuantConfig("none")))
    places = {(one["group"], one["place"]) for one in figures["held"]}
    assert (memory.SKIPPED, memory.MAPPED) in places and (memory.NORMS, memory.CPU) in places
    _, figures = report(model=model_of(flux_file))
    assert {one["place"] for one in figures["held"] if one["group"] == memory.PACKED} == {memory.CPU}


def test_the_host_is_asked_again_at_each_run():
    one, other = QuantFluxMemoryReport.fingerprint_inputs(), QuantFluxMemoryReport.fingerprint_inputs()
    assert one is not other and [one] != [other]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("config", CONFIGS, ids=QuantConfig.describe)
def test_it_agrees_with_what_is_allocated_on_a_gpu(flux_file, config):
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()
    before = torch.cuda.memory_allocated()
    model = model_of(flux_file, config)
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    _, figures = report(model=model)
    on_gpu = sum(one["nbytes"] for one in figures["held"] if one["place"] == memory.GPU)
    # the allocator rounds each tensor up to 512 bytes, which the small model's many small ones feel
    tensors = sum(len(plain_tensors(t)) for t in itertools.chain(model.model.parameters(), model.model.buffers()))
    assert torch.cuda.memory_allocated() - before == pytest.approx(on_gpu, rel=0.01, abs=512 * tensors)
    device = figures["process"][f"VRAM of {model.load_device}"]
    assert device["peak since the last report"] >= device["allocated"] >= on_gpu
    again = report(model=model)[1]["process"][f"VRAM of {model.load_device}"]
    assert again["peak since the last report"] == pytest.approx(again["allocated"], rel=0.01)
