"""The VRAM Plan node, and the card that it is made for."""

import math

import comfy.model_management
import folder_paths
import pytest
import torch
from format_files import write_sparse
from full_sizes import FLUX_BLOCKS, FLUX_DEV
from quantflux.nodes.host import card as host_card
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.plan import QuantFluxPlan
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import CheckpointError, ConfigError
from quantflux.quant_core.plan.activations import TEXT_TOKENS
from quantflux.quant_core.source import flux_source


@pytest.mark.parametrize("precision", ["none", "nf4"])
@pytest.mark.parametrize("compute_dtype", [None, torch.float32])
def test_the_reserve_is_the_one_that_the_host_will_keep(flux_file, precision, compute_dtype):
    memory = comfy.model_management
    source = flux_source(open_checkpoint(flux_file), QuantConfig(precision, compute_dtype=compute_dtype))
    model = load_flux_model(source).model
    needed = model.memory_required([8, 16, 256, 256])
    expected = max(memory.minimum_inference_memory(), needed + memory.extra_reserved_memory())
    dtype = host_card.activation_dtype(source)
    assert dtype == (model.manual_cast_dtype or model.get_dtype())
    found = host_card.card(2048, 2048, 8)
    assert found.reserve[precision, dtype.itemsize] == int(expected)
    assert found.encoder_reserve == int(memory.minimum_inference_memory())


def test_the_card_is_what_the_host_says():
    memory, found = comfy.model_management, host_card.card(1024, 1024, 1)
    assert found.is_cpu == memory.is_device_cpu(memory.get_torch_device())
    assert found.total == int(memory.get_total_memory(memory.get_torch_device()))
    assert 0 < found.free <= found.total
    assert found.room(2**40) == math.inf if found.is_cpu else found.room(2**40) == 0


@pytest.fixture
def offered(flux_file, text_files):
    """The small models in the host's folders, by their names there."""
    folders = {"diffusion_models": flux_file.parent, "text_encoders": text_files}
    before = {key: list(folder_paths.get_folder_paths(key)) for key in folders}
    for key, folder in folders.items():
        folder_paths.add_model_folder_path(key, str(folder))
    yield flux_file.name, "t5.safetensors"
    for key, paths in before.items():
        folder_paths.get_folder_paths(key)[:] = paths


def run(model_name, t5_name, config=None, width=256, height=256, batch_size=1):
    output = QuantFluxPlan.execute(model_name, t5_name, width, height, batch_size, config)
    shown, chart = output.args
    (figures,) = output.ui["quantflux"]
    (text,) = output.ui["text"]
    assert shown == f"```\n{text}\n```"
    assert chart.dtype == torch.float32 and chart.shape[0] == 1 and chart.shape[3] == 3
    assert 0 <= chart.min() and chart.max() <= 1
    return text, figures


@pytest.mark.parametrize("config", [QuantConfig("int8"), QuantConfig("nf4", skip_modules=("img_in",))], ids=str)
def test_the_weights_are_those_of_the_model_that_the_loader_makes(offered, flux_file, config):
    _, figures = run(*offered, config)
    (asked,) = [row for row in figures["rows"] if row["asked"]]
    loaded = load_flux_model(flux_source(open_checkpoint(flux_file), config)).model.diffusion_model
    held = comfy.model_management.module_size(loaded)
    # a GPU has the float32 norms of this file in bfloat16
    assert asked["resident"] + asked["offloaded"] == pytest.approx(held, rel=1e-3 if torch.cuda.is_available() else 0)
    assert len(figures["rows"]) == 5
    assert all(row["sampling"]["peak"] > 0 and row["encoding"]["peak"] > 0 for row in figures["rows"])


def test_a_cpu_is_called_one(offered):
    text, figures = run(*offered)
    if torch.cuda.is_available():
        pytest.skip("the host has a GPU")
    assert "This host has no GPU: the plan is against main memory" in text
    assert figures["device"] == "main memory" and figures["rows"][0]["offloaded"] == 0


def test_full_sized_files_are_planned_from_their_headers(offered, tmp_path):
    shapes = FLUX_DEV.tensor_shapes()
    write_sparse(tmp_path / "full.safetensors", {n: ("BF16", s, 2 * math.prod(s)) for n, s in shapes.items()}, {})
    folder_paths.add_model_folder_path("diffusion_models", str(tmp_path))
    _, figures = run("full.safetensors", offered[1], width=1024, height=1024)
    nf4 = next(row for row in figures["rows"] if row["config"] == "nf4")
    # README's measured model, 6.2389 GiB
    assert nf4["resident"] + nf4["offloaded"] == pytest.approx(6.2389 * 2**30, rel=1e-4)


def test_names_and_files_that_cannot_be_used_are_told_as_by_the_loaders(offered):
    with pytest.raises(ConfigError, match=r"gone\.safetensors is in none of the host's folders"):
        run("gone.safetensors", offered[1])
    with pytest.raises(ConfigError, match=r"gone\.safetensors is in none of the host's folders"):
        run(offered[0], "gone.safetensors")
    with pytest.raises(CheckpointError, match="clip_l"):
        run(offered[0], "clip_l.safetensors")


def test_the_host_is_asked_again_at_each_run():
    one, other = QuantFluxPlan.fingerprint_inputs(), QuantFluxPlan.fingerprint_inputs()
    assert [one] != [other]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [(512, 512, 1), (1024, 1024, 1), (1024, 1024, 2)], ids=str)
@pytest.mark.parametrize(
    "config", [QuantConfig("none"), QuantConfig("nf4"), QuantConfig("int8")], ids=QuantConfig.describe
)
def test_the_peak_on_a_gpu_is_the_predicted_one_within_5_percent(offered, tmp_path, config, size):
    """One block of each kind, at FLUX.1-dev's sizes: activations are most of it."""
    shapes = FLUX_BLOCKS.tensor_shapes()
    write_sparse(tmp_path / "block.safetensors", {n: ("BF16", s, 2 * math.prod(s)) for n, s in shapes.items()}, {})
    folder_paths.add_model_folder_path("diffusion_models", str(tmp_path))
    comfy.model_management.unload_all_models()
    # cuBLAS keeps its workspace, which is a part of the peak, from the first product of a process on
    torch._C._cuda_clearCublasWorkspaces()
    comfy.model_management.soft_empty_cache()
    before = torch.cuda.memory_allocated()
    _, figures = run("block.safetensors", offered[1], config, *size)
    (asked,) = [row for row in figures["rows"] if row["asked"]]
    patcher = load_flux_model(flux_source(open_checkpoint(tmp_path / "block.safetensors"), config))
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)
    width, height, batch = size

    def made(*shape):
        return torch.zeros(shape, dtype=torch.bfloat16, device=patcher.load_device)

    inputs = made(batch, 16, height // 8, width // 8), made(batch), made(batch, TEXT_TOKENS, 4096), made(batch, 768)
    torch.cuda.reset_peak_memory_stats()
    patcher.model.diffusion_model(*inputs, made(batch))
    measured = torch.cuda.max_memory_allocated() - before - sum(tensor.nbytes for tensor in inputs)
    assert measured == pytest.approx(asked["sampling"]["peak"], rel=0.05)
