"""Quantize Model in workflows of a real host, behind the stock loader and behind ours."""

import pytest
import torch
from comfy_client import PromptFailed
from read_picture import pixel_hash, read_picture
from safetensors.torch import load_file, save_file
from shape_scenes import prompts
from stock_models import node
from tiny_workflow import text_to_image

CAPTION, SHAPE, COLOUR = prompts(1, seed=11)[0]
CONTEXT, POOLED, HIDDEN = 128, 64, 128  # the small FLUX's text encoders serve this SD3 too


def sd3_tensors() -> dict[str, torch.Tensor]:
    """An SD3 of two blocks and random weights under the names of Stability AI's files, float16."""
    shapes = {
        "pos_embed": (1, 256, HIDDEN),
        "x_embedder.proj": (HIDDEN, 16, 2, 2),
        "t_embedder.mlp.0": (HIDDEN, 256),
        "t_embedder.mlp.2": (HIDDEN, HIDDEN),
        "y_embedder.mlp.0": (HIDDEN, POOLED),
        "y_embedder.mlp.2": (HIDDEN, HIDDEN),
        "context_embedder": (HIDDEN, CONTEXT),
        "final_layer.linear": (64, HIDDEN),
        "final_layer.adaLN_modulation.1": (2 * HIDDEN, HIDDEN),
    }
    for block, stream in (f"{number} {name}".split() for number in (0, 1) for name in ("context", "x")):
        last = (block, stream) == ("1", "context")
        prefix = f"joint_blocks.{block}.{stream}_block"
        shapes[f"{prefix}.attn.qkv"] = (3 * HIDDEN, HIDDEN)
        shapes[f"{prefix}.adaLN_modulation.1"] = ((2 if last else 6) * HIDDEN, HIDDEN)
        if not last:
            shapes[f"{prefix}.attn.proj"] = (HIDDEN, HIDDEN)
            shapes[f"{prefix}.mlp.fc1"] = (4 * HIDDEN, HIDDEN)
            shapes[f"{prefix}.mlp.fc2"] = (HIDDEN, 4 * HIDDEN)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator) * torch.Size(shape[1:]).numel() ** -0.5
        if name == "pos_embed":
            tensors[name] = weight.half()
        else:
            tensors |= {f"{name}.weight": weight.half(), f"{name}.bias": torch.zeros(shape[0]).half()}
    return tensors


@pytest.fixture(scope="module")
def sd3(host, tmp_path_factory):
    path = tmp_path_factory.mktemp("sd3") / "sd3_tiny.safetensors"
    save_file(sd3_tensors(), path)
    host.add_model("diffusion_models", path)
    return path.name


def behind_stock_loader(file: str, **config) -> dict:
    """The text-to-image workflow with another transformer: UNETLoader → Quantize Model → sampler."""
    graph = text_to_image(CAPTION, seed=3)
    graph["transformer"] = node("UNETLoader", unet_name=file, weight_dtype="default")
    graph["model config"] = node("QuantFluxConfig", **(graph["config"]["inputs"] | config))
    graph["quantized"] = node("QuantFluxQuantize", model=["transformer", 0], config=["model config", 0])
    graph["sampler"]["inputs"] |= {"model": ["quantized", 0], "steps": 2, "cfg": 1.0}
    graph["keep"] = node("SaveLatent", samples=["sampler", 0], filename_prefix="quantize_model")
    return graph


def latent(host, finished) -> torch.Tensor:
    (file,) = finished.outputs["keep"]["latents"]
    return load_file(host.base / "output" / file["subfolder"] / file["filename"])["latent_tensor"]


def test_a_stock_loaders_sd3_is_packed_and_sampled_and_the_stock_model_stays(host, sd3):
    graph = behind_stock_loader(sd3, precision="nf4", skip_modules="proj_out")
    finished = host.client.run(graph)
    packed = latent(host, finished)
    (figures,) = finished.outputs["quantized"]["quantflux"]
    assert figures["bytes"] < 0.5 * figures["bytes_before"]
    assert finished.outputs["quantized"]["text"][0].startswith("nf4 · ")
    graph["sampler"]["inputs"]["model"] = ["transformer", 0]
    plain = latent(host, host.client.run(graph))
    assert packed.isfinite().all() and plain.isfinite().all()
    assert 1e-3 < (packed - plain).norm() / plain.norm() < 0.5


def test_a_flux_quantized_after_loading_draws_what_one_quantized_while_loading_does(client):
    client.free()
    graph = text_to_image(CAPTION, precision="nf4")
    expected = client.run(graph)
    assert read_picture(expected.images[0]) == (SHAPE, COLOUR)
    graph["plain config"] = node("QuantFluxConfig", **(graph["config"]["inputs"] | {"precision": "none"}))
    graph["transformer"]["inputs"]["config"] = ["plain config", 0]
    graph["quantized"] = node("QuantFluxQuantize", model=["transformer", 0], config=["config", 0])
    graph["sampler"]["inputs"]["model"] = ["quantized", 0]
    finished = client.run(graph)
    assert pixel_hash(finished.images[0]) == pixel_hash(expected.images[0])
    assert (
        finished.outputs["quantized"]["quantflux"][0]["bytes"]
        == expected.outputs["transformer"]["quantflux"][0]["bytes"]
    )


def test_another_config_for_a_packed_model_is_told(client):
    graph = text_to_image(CAPTION, precision="nf4")
    graph["other config"] = node("QuantFluxConfig", **(graph["config"]["inputs"] | {"precision": "int8"}))
    graph["quantized"] = node("QuantFluxQuantize", model=["transformer", 0], config=["other config", 0])
    graph["sampler"]["inputs"]["model"] = ["quantized", 0]
    with pytest.raises(PromptFailed, match="packed already.*put a Dequantize node"):
        client.run(graph)
