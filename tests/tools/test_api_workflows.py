"""The shipped API-format workflows are whole: every link leads to a node, and every node to something that is kept."""

import pytest
from tiny_workflow import WORKFLOWS, load_workflow, text_to_image

NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))
KEPT = {"SaveImage", "PreviewImage", "PreviewAny", "QuantFluxSave"}


def links(node):
    return [value[0] for value in node["inputs"].values() if isinstance(value, list)]


def test_there_is_one_for_the_real_model_and_one_for_the_small_one():
    assert {"flux_dev_text_to_image", "tiny_flux_text_to_image"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_node_leads_to_a_picture_a_text_or_a_file(name):
    graph = load_workflow(name)
    reached, ahead = set(), [node_id for node_id, node in graph.items() if node["class_type"] in KEPT]
    assert ahead
    while ahead:
        node_id = ahead.pop()
        reached.add(node_id)
        ahead += links(graph[node_id])
    assert reached == set(graph)


def test_prompt_seed_and_config_are_set():
    graph = text_to_image("a blue star", seed=4, precision="int8")
    assert graph["prompt"]["inputs"]["text"] == "a blue star"
    assert graph["sampler"]["inputs"]["seed"] == 4
    assert graph["config"]["inputs"]["precision"] == "int8"
