"""The templates: the files are those of the tool's graphs, laid out, explained, with downloads and thumbnails.

That the canvas's file and the API's are the same graph is tested in tests/e2e/test_headless.py, by the converter.
"""

import json
from itertools import combinations

import pytest
from export_templates import TEMPLATES
from PIL import Image
from template_graphs import GRAPHS
from template_notes import DOWNLOADS, NOTES
from tiny_workflow import MODELS, WORKFLOWS, load_workflow

NAMES = list(GRAPHS)
TITLE = 30  # height of a node's title, above its place
LARGEST = 25_000  # bytes of a thumbnail


def template(name):
    return json.loads((TEMPLATES / f"{name}.json").read_text())


def box(node):
    """(left, top, right, bottom)"""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, x + width, y + height


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def group_box(group):
    x, y, width, height = group["bounding"]
    return x, y, x + width, y + height


def test_every_template_has_its_three_files():
    for folder, suffix in ((TEMPLATES, ".json"), (TEMPLATES, ".jpg"), (WORKFLOWS, ".json")):
        assert {path.stem for path in folder.glob(f"*{suffix}")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_api_file_is_the_graph_of_the_tool(name):
    assert load_workflow(name) == GRAPHS[name]()


@pytest.mark.parametrize("name", NAMES)
def test_the_note_says_what_the_tool_has_it_say(name):
    (note,) = [node for node in template(name)["nodes"] if node["type"] == "MarkdownNote"]
    assert note["widgets_values"] == [NOTES[name]]


@pytest.mark.parametrize("name", NAMES)
def test_the_canvas_offers_every_file_that_a_node_names(name):
    small = {path.name for paths in MODELS.values() for path in paths}
    for node in template(name)["nodes"]:
        named = {str(value) for value in node.get("widgets_values", []) if str(value).endswith(".safetensors")}
        offered = {model["name"]: model for model in node["properties"].get("models", [])}
        assert set(offered) == named - small
        for file, model in offered.items():
            place, folder = DOWNLOADS[file]
            assert model == {"name": file, "url": f"{place}/{file}", "directory": folder}


@pytest.mark.parametrize("name", NAMES)
def test_every_node_names_the_pack_that_it_comes_from(name):
    for node in template(name)["nodes"]:
        if node["type"] != "MarkdownNote":
            pack = "quantflux" if node["type"].startswith("QuantFlux") else "comfy-core"
            assert node["properties"]["cnr_id"] == pack
            assert node["properties"]["ver"][0].isdigit()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps_and_every_node_is_in_one_group(name):
    canvas = template(name)
    assert not [pair for pair in combinations(map(box, canvas["nodes"]), 2) if overlap(*pair)]
    groups = [group_box(group) for group in canvas["groups"]]
    assert not [pair for pair in combinations(groups, 2) if overlap(*pair)]
    assert all(group["title"] for group in canvas["groups"])
    for node in canvas["nodes"]:
        around = [group for group in groups if overlap(box(node), group)]
        if node["type"] == "MarkdownNote":
            assert not around
            continue
        (group,) = around
        left, top, right, bottom = box(node)
        assert group[0] <= left and group[1] <= top and right <= group[2] and bottom <= group[3]


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_from_left_to_right(name):
    canvas = template(name)
    left = {node["id"]: node["pos"][0] for node in canvas["nodes"]}
    assert all(left[source] <= left[target] for _, source, _, target, _, _ in canvas["links"])
    (note,) = [node for node in canvas["nodes"] if node["type"] == "MarkdownNote"]
    assert note["pos"][0] == min(left.values())


def test_thumbnails_are_small_square_and_different():
    paths = sorted(TEMPLATES.glob("*.jpg"))
    for path in paths:
        assert path.stat().st_size <= LARGEST
        with Image.open(path) as picture:
            assert (picture.format, picture.size) == ("JPEG", (320, 320))
    assert len({path.read_bytes() for path in paths}) == len(paths)
