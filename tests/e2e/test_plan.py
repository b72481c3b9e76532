"""VRAM Plan in a workflow of a real host."""

import pytest
from comfy_client import PromptFailed, PromptRejected
from stock_models import node
from tiny_workflow import text_to_image


def planning(**inputs) -> dict:
    sizes = {"width": 128, "height": 128, "batch_size": 2}
    files = {"model_name": "flux_tiny.safetensors", "t5_name": "t5_tiny.safetensors"}
    return {"plan": node("QuantFluxPlan", **(files | sizes | inputs))}


def test_a_plan_is_made_at_each_queue_and_tells_what_the_loader_then_takes(client):
    graph = planning(config=["config", 0])
    graph["config"] = text_to_image("", precision="int8")["config"]
    graph["chart"] = node("SaveImage", images=["plan", 1], filename_prefix="plan")
    graph["text"] = node("PreviewAny", source=["plan", 0])
    client.free()
    finished = client.run(graph)
    (figures,) = finished.outputs["plan"]["quantflux"]
    (text,) = finished.outputs["plan"]["text"]
    assert finished.outputs["text"]["text"] == [f"```\n{text}\n```"]
    (picture,) = finished.images
    assert picture.width == 1024
    # again, though nothing changed
    assert client.run(graph).outputs["plan"]["quantflux"][0]["rows"] == figures["rows"]

    (asked,) = [row for row in figures["rows"] if row["asked"]]
    loading = text_to_image("a red circle", precision="int8")
    loading["sampler"]["inputs"]["steps"] = 1
    loaded = client.run(loading).outputs["transformer"]["quantflux"][0]
    assert asked["resident"] + asked["offloaded"] == loaded["bytes"]


@pytest.mark.parametrize("name", ["clip_l_tiny.safetensors", "t5_tiny.safetensors"])
def test_a_file_that_is_no_transformer_is_refused(client, name):
    with pytest.raises((PromptRejected, PromptFailed), match=name.replace(".", r"\.")):
        client.run(planning(model_name=name))


def test_a_size_out_of_range_is_refused(client):
    with pytest.raises(PromptRejected, match="width"):
        client.run(planning(width=0))
