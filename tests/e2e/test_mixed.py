"""A budget instead of one precision, in workflows of a real host."""

import pytest
from comfy_client import PromptFailed
from read_picture import pixel_hash, read_picture
from shape_scenes import prompts
from tiny_workflow import ASSETS, text_to_image

CAPTION, SHAPE, COLOUR = prompts(1, seed=11)[0]
MIB_IN_GIB = 1024


@pytest.fixture(scope="module", autouse=True)
def costs(host):
    host.add_model("diffusion_models", ASSETS / "flux_tiny.safetensors.costs.csv")


def within(mib: float, blocksize: int = 64, **more) -> dict:
    """``blocksize``: of T5."""
    transformer = {"skip_modules": f"auto:{mib / MIB_IN_GIB}", "blocksize": 64} | more
    return text_to_image(CAPTION, transformer=transformer, blocksize=blocksize)


def test_a_mixed_model_keeps_the_budget_draws_the_prompt_and_says_what_was_chosen(client):
    # a T5 of no other test: nodes that the host has cached report nothing
    finished = client.run(within(6.0, blocksize=256))
    assert read_picture(finished.images[0]) == (SHAPE, COLOUR)
    report = finished.outputs["transformer"]
    figures = report["quantflux"][0]
    assert 5.9 < figures["bytes"] / 2**20 <= 6.0
    assert len(figures["layers"]) > 1 and sum(figures["layers"].values()) == 42
    for label, number in figures["layers"].items():
        assert f"{number} × {label}" in report["text"][0]
    assert "flux_tiny.safetensors.costs.csv" in report["text"][0]
    assert finished.outputs["text_encoders"]["quantflux"][0]["precision"] == "nf4"


def test_a_mixed_model_is_saved_and_draws_the_same_picture(client):
    graph = within(7.0)
    graph["sampler"]["inputs"]["steps"] = 4
    graph["save_model"] = {
        "class_type": "QuantFluxSave",
        "inputs": {"model": ["transformer", 0], "filename_prefix": "mixed", "format": "single file"},
    }
    finished = client.run(graph)
    layers = finished.outputs["transformer"]["quantflux"][0]["layers"]
    again = text_to_image(CAPTION)
    again["transformer"]["inputs"]["model_name"] = finished.outputs["save_model"]["quantflux"][0]["file"]
    again["sampler"]["inputs"]["steps"] = 4
    del again["transformer"]["inputs"]["config"]
    reloaded = client.run(again)
    assert reloaded.outputs["transformer"]["quantflux"][0]["layers"] == layers
    assert pixel_hash(reloaded.images[0]) == pixel_hash(finished.images[0])


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (within(1.0), "auto:0.000976562 allows 0.000976562 GiB, but flux_tiny.safetensors takes 0.00"),
        (within(6.0, precision="none"), "precision none packs nothing"),
        (within(6.0, skip_modules="auto:some"), "Write auto:<GiB>"),
        (text_to_image(CAPTION, skip_modules="auto:1"), "Connect a second Quantization Config"),
    ],
    ids=["too small", "precision none", "no number", "for T5 too"],
)
def test_a_budget_that_cannot_be_kept_is_told(client, graph, words):
    with pytest.raises(PromptFailed, match=words):
        client.run(graph)
