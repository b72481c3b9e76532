"""The tools' client against the real host, with stock nodes only."""

import pytest
from comfy_client import TRIVIAL_GRAPH, PromptFailed, PromptRejected
from tiny_workflow import text_to_image


def test_a_run_returns_pictures_and_history(client):
    finished = client.run(TRIVIAL_GRAPH)
    assert [picture.size for picture in finished.images] == [(8, 8)]
    assert finished.history["status"]["status_str"] == "success"


def test_a_cached_run_returns_the_same_pictures(client):
    assert client.run(TRIVIAL_GRAPH).files == client.run(TRIVIAL_GRAPH).files


def test_a_refused_workflow_names_the_node_and_the_input(client):
    graph = {**TRIVIAL_GRAPH, "image": {"class_type": "EmptyImage", "inputs": {"width": -1}}}
    with pytest.raises(PromptRejected, match=r"EmptyImage \(image\): .*width"):
        client.run(graph)


def test_an_unknown_node_is_refused(client):
    with pytest.raises(PromptRejected, match="NoSuchNode"):
        client.run({"a": {"class_type": "NoSuchNode", "inputs": {}}})


def test_a_node_that_raises_passes_its_message_on(host):
    broken = host.base / "input" / "broken.png"
    broken.parent.mkdir(exist_ok=True)
    broken.write_bytes(b"no picture")
    graph = {
        "load": {"class_type": "LoadImage", "inputs": {"image": "broken.png"}},
        "show": {"class_type": "PreviewImage", "inputs": {"images": ["load", 0]}},
    }
    with pytest.raises(PromptFailed, match="cannot identify image file") as caught:
        host.client.run(graph)
    assert (caught.value.node_id, caught.value.node_type) == ("load", "LoadImage")


def test_steps_are_reported(client):
    seen = []
    graph = text_to_image("a red circle", seed=99)
    graph["sampler"]["inputs"]["steps"] = 3
    client.run(graph, on_progress=lambda node_id, done, total: seen.append((node_id, done, total)))
    assert [entry for entry in seen if entry[0] == "sampler"][-1] == ("sampler", 3, 3)
