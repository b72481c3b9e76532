"""The canvas templates are the API-format workflows, with a note and the downloads."""

import json
from collections import Counter

import pytest
from export_templates import DOWNLOADS, NOTES, TEMPLATES
from tiny_workflow import load_workflow


def template(name):
    return json.loads((TEMPLATES / f"{name}.json").read_text())


@pytest.mark.parametrize("name", NOTES)
def test_a_template_has_the_nodes_links_and_values_of_its_workflow(name):
    graph, canvas = load_workflow(name), template(name)
    assert Counter(node["type"] for node in canvas["nodes"]) == Counter(
        ["MarkdownNote", *(node["class_type"] for node in graph.values())]
    )
    # the canvas keeps a title only where it differs from the node's own name
    twice = {kind for kind, count in Counter(node["class_type"] for node in graph.values()).items() if count > 1}

    def key(kind, title):
        return title if kind in twice else kind

    in_graph = {i: key(node["class_type"], node["_meta"]["title"]) for i, node in graph.items()}
    on_canvas = {node["id"]: key(node["type"], node.get("title")) for node in canvas["nodes"]}
    assert {(on_canvas[source], slot, on_canvas[target]) for _, source, slot, target, _, _ in canvas["links"]} == {
        (in_graph[value[0]], value[1], in_graph[i])
        for i, node in graph.items()
        for value in node["inputs"].values()
        if isinstance(value, list)
    }
    widgets = {on_canvas[node["id"]]: node.get("widgets_values", []) for node in canvas["nodes"]}
    for i, node in graph.items():
        values = [value for value in node["inputs"].values() if not isinstance(value, list)]
        kept = [value for value in widgets[in_graph[i]] if value != "fixed"]  # what a seed does after a run
        assert Counter(str(_number(v)) for v in kept) == Counter(str(_number(v)) for v in values)


def _number(value):
    """1 and 1.0 are the same to the canvas."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def test_the_canvas_is_told_where_to_get_every_file_of_flux_dev():
    models = [
        model for node in template("flux_dev_text_to_image")["nodes"] for model in node["properties"].get("models", [])
    ]
    assert {model["name"] for model in models} == set(DOWNLOADS)
    assert all(model["url"].endswith(model["name"]) and model["directory"] for model in models)
