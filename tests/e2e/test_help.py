"""What the canvas asks a real host for: help pages, their pictures, tooltips and translations."""

import json

import pytest
import requests
from comfy_host import REPOSITORY

IDS = sorted(path.stem for path in (REPOSITORY / "web" / "docs").glob("*.md"))
LOCALES = REPOSITORY / "locales"


@pytest.fixture(scope="session")
def nodes(client):
    """Node id -> the host's description, for our nodes."""
    info = client.get("/object_info")
    return {name: one for name, one in info.items() if one["category"].startswith("quantflux")}


def served(client, name):
    return requests.get(f"{client.url}/extensions/quantflux/docs/{name}", timeout=60)


def test_every_node_of_the_host_has_a_page(nodes):
    assert sorted(nodes) == IDS


@pytest.mark.parametrize("node", IDS)
@pytest.mark.parametrize("form", ["{}.md", "{}/zh.md"])
def test_the_host_serves_a_nodes_help_page(client, node, form):
    answer = served(client, form.format(node))
    assert answer.status_code == 200
    assert answer.content == (REPOSITORY / "web" / "docs" / form.format(node)).read_bytes()


def test_another_language_falls_back_to_the_english_page(client):
    assert served(client, f"{IDS[0]}/fr.md").status_code == 404
    assert served(client, f"{IDS[0]}.md").status_code == 200


@pytest.mark.parametrize("name", sorted(path.name for path in (REPOSITORY / "web" / "docs").glob("*.png")))
def test_the_host_serves_the_pictures(client, name):
    answer = served(client, name)
    assert answer.status_code == 200 and answer.headers["Content-Type"] == "image/png"


@pytest.mark.parametrize("language", sorted(path.name for path in LOCALES.iterdir()))
def test_the_host_hands_out_our_texts(client, language):
    ours = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    theirs = client.get("/i18n")[language]["nodeDefs"]
    assert {node: theirs.get(node) for node in ours} == ours


def test_the_host_hands_out_a_tooltip_for_every_input_and_output(nodes):
    for name, info in nodes.items():
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert [key for key, (_, options) in inputs.items() if not options.get("tooltip")] == [], name
        assert all(info["output_tooltips"]) and len(info["output_tooltips"]) == len(info["output"]), name


def test_the_pack_ships_no_javascript(client):
    assert [path for path in client.get("/extensions") if path.startswith("/extensions/quantflux/")] == []
