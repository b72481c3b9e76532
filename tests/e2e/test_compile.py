"""Compile in workflows of a real host. aot_eager needs no compiler on the machine, and computes as without Compile."""

import pytest
from comfy_client import PromptFailed, PromptRejected
from read_picture import read_picture
from shape_scenes import prompts
from tiny_workflow import text_to_image

CAPTION, SHAPE, COLOUR = prompts(1, seed=11)[0]


def compiling(**inputs) -> dict:
    """The text-to-image workflow with Compile in front of the sampler."""
    graph = text_to_image(CAPTION, precision="nf4")
    defaults = {"backend": "aot_eager", "mode": "default", "regional": True, "fullgraph": False, "dynamic": "auto"}
    graph["compile"] = {
        "class_type": "QuantFluxCompile", "inputs": {"model": ["transformer", 0]} | defaults | inputs
    }  # fmt: skip
    graph["sampler"]["inputs"]["model"] = ["compile", 0]
    return graph


def test_a_compiled_model_draws_what_the_prompt_says_and_the_history_says_what_was_compiled(client):
    finished = client.run(compiling())
    assert read_picture(finished.images[0]) == (SHAPE, COLOUR)
    (text,) = finished.outputs["compile"]["text"]
    assert text.startswith("aot_eager, default · per block: ")
    (figures,) = finished.outputs["compile"]["quantflux"]
    # the node ran before the sampler, which filled these in
    assert figures["graphs"] and figures["steps"] > 0
    again = compiling()
    again["sampler"]["inputs"]["seed"] += 1
    client.run(again)
    later = client.get(f"/history/{finished.prompt_id}")[finished.prompt_id]["outputs"]["compile"]["quantflux"][0]
    assert later["steps"] == 2 * figures["steps"] and later["graphs"] == figures["graphs"]


def test_a_back_end_that_is_not_there_is_told_before_sampling(client):
    # older hosts let any text through; newer ones refuse the value themselves
    with pytest.raises((PromptFailed, PromptRejected), match="backend"):
        client.run(compiling(backend="tensorrt"))
