"""A picture from an empty canvas: nodes, wires, values and Run, as a person would."""

import io
import json

import numpy
import pytest
from PIL import Image
from read_picture import read_picture
from tiny_workflow import load_workflow

PROMPT, SHAPE, COLOUR = "a large red circle", "circle", "red"
# node ids of the workflow, from left to right, and in each column from top to bottom
COLUMNS = [
    ["config", "vae"],
    ["transformer", "text_encoders", "latent"],
    ["prompt", "guidance", "negative"],
    ["sampler", "decode"],
    ["save"],
]


@pytest.fixture
def graph():
    return load_workflow("tiny_flux_text_to_image")


@pytest.fixture
def user(user, graph):
    """A person who has the nodes on the canvas, not yet linked, with the values that they have by themselves."""
    user.page.evaluate("() => { app.canvas.ds.scale = 0.8 }")
    for column, ids in enumerate(COLUMNS):
        for row, node_id in enumerate(ids):
            user.place(
                graph[node_id]["class_type"], 120 + column * 410, 260 + row * 310, graph[node_id]["_meta"]["title"]
            )
    return user


def redness(png: bytes) -> float:
    """The part of a picture that is a strong red."""
    red, green, blue = numpy.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int).transpose(2, 0, 1)
    return float(((red > 150) & (green < 90) & (blue < 90)).mean())


def test_wired_by_hand_it_draws_what_the_prompt_says(user, graph, host):
    title = {node_id: node["_meta"]["title"] for node_id, node in graph.items()}
    wires = {
        (title[value[0]], value[1], title[node_id], key)
        for node_id, node in graph.items()
        for key, value in node["inputs"].items()
        if isinstance(value, list)
    }
    for wire in sorted(wires):
        user.drag_link(*wire)
    assert user.links() == wires

    user.choose(title["transformer"], "model_name", "flux_tiny.safetensors")
    user.choose(title["text_encoders"], "t5_name", "t5_tiny.safetensors")
    user.choose(title["text_encoders"], "clip_l_name", "clip_l_tiny.safetensors")
    user.choose(title["config"], "precision", "nf4")
    user.write(title["prompt"], "text", PROMPT)
    user.set(title["latent"], width=128, height=128)
    user.set(title["sampler"], seed=1, steps=20, cfg=2.0, sampler_name="euler", scheduler="simple")
    user.set(title["save"], filename_prefix="canvas/drawn")
    assert redness(user.picture_of(title["save"])) == 0
    host.client.free()  # nodes that are in the cache do not run, and say nothing

    assert user.run() == "execution_success"

    (saved,) = (host.base / "output" / "canvas").glob("drawn*.png")
    assert read_picture(Image.open(saved)) == (SHAPE, COLOUR)
    # the node grows to show it
    user.page.wait_for_function(
        "name => user.find(name).imgs?.[0].naturalWidth === 128 && user.find(name).size[1] > 200", arg=title["save"]
    )
    assert redness(user.picture_of(title["save"])) > 0.02
    assert not user.has_problems()
    # the loaders say what they have loaded
    for loader in ("transformer", "text_encoders"):
        user.page.wait_for_function(
            "name => user.said.some(({nodeId, text}) => nodeId == user.find(name).id && /^nf4 · .* MiB/.test(text))",
            arg=title[loader],
        )

    # the picture brings its workflow along
    user.new_workflow()
    user.drop_file(saved)
    user.wait_for_nodes(len(graph))
    assert user.links() == wires
    assert json.loads(Image.open(saved).info["workflow"])["id"] == user.page.evaluate("app.graph.id")
