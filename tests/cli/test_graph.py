"""Which files are workflows, and how nodes are named. (Conversion is in tests/e2e: it needs a host's node list.)"""

import json

import pytest
from quantflux.cli.errors import UsageError
from quantflux.cli.graph import node_name, read_workflow, to_graph
from tiny_workflow import load_workflow


def test_a_graph_in_api_format_stays_as_it_is():
    graph = load_workflow("tiny_flux_text_to_image")
    assert to_graph(graph, {node["class_type"]: {} for node in graph.values()}) is graph


def test_nodes_that_the_server_lacks_are_named():
    graph = load_workflow("tiny_flux_text_to_image")
    have = {node["class_type"]: {} for node in graph.values() if not node["class_type"].startswith("QuantFlux")}
    with pytest.raises(UsageError, match="QuantFluxConfig, QuantFluxLoadT5, QuantFluxLoadTransformer"):
        to_graph(graph, have)


def test_a_node_is_named_by_title_class_and_id():
    graph = {"6": {"class_type": "CLIPTextEncode", "_meta": {"title": "Prompt"}}, "3": {"class_type": "KSampler"}}
    assert node_name(graph, "6") == "Prompt (CLIPTextEncode, node 6)"
    assert node_name(graph, "3") == "KSampler (node 3)"
    assert node_name(graph, "9") == "9 (node 9)"
    assert node_name({"3": {"class_type": "KSampler", "_meta": None}}, "3") == "KSampler (node 3)"


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    graph = load_workflow("tiny_flux_text_to_image")
    (tmp_path / "file.json").write_text(json.dumps(graph), encoding="utf-8-sig")
    assert read_workflow(tmp_path / "file.json") == graph


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a workflow"),
        ("{}", "is not a workflow"),
        (json.dumps({"1": {"inputs": {}}}), "is not a workflow"),
        (json.dumps({"quantization_config": {"load_in_4bit": True}}), "is not a workflow"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "file.json").write_text(content)
    with pytest.raises(UsageError, match=rf"file\.json {message}"):
        read_workflow(tmp_path / "file.json")


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.json cannot be read"):
        read_workflow(tmp_path / "gone.json")
