"""Every workflow that the pack brings opens on the canvas, in each of the ways that people open them."""

import json
from pathlib import Path

import pytest
from canvas_user import ALERTS
from comfy_host import REPOSITORY
from PIL import Image
from PIL.PngImagePlugin import PngInfo

TEMPLATES = sorted((REPOSITORY / "workflows").glob("*.json"))
template = pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def missing_models(client):
    """A function that returns the models of a workflow which are not on this machine."""
    kinds = client.get("/models")
    there = {kind: set(client.get(f"/models/{kind}")) for kind in kinds}

    def missing(workflow):
        models = [model for node in workflow["nodes"] for model in node["properties"].get("models", [])]
        return {model["name"] for model in models if model["name"] not in there.get(model["directory"], ())}

    return missing


@pytest.fixture
def assert_open(user, missing_models):
    """A function that waits for a workflow to be open, and looks whether it is whole, sound and in view."""

    def check(path: Path):
        workflow = json.loads(path.read_text(encoding="utf-8"))
        user.wait_for_nodes(len(workflow["nodes"]))
        assert user.types() == sorted(node["type"] for node in workflow["nodes"])
        assert len(user.links()) == len(workflow["links"])
        assert user.unknown_nodes() == []
        assert user.alerts() == []
        missing = missing_models(workflow)
        if missing:
            # the canvas offers what this machine does not have, and has no other objection
            told = user.read_error()
            assert [name for name in missing if name not in told] == []
            assert not any(word in told.lower() for word in ("missing node", "custom node", "missing input"))
        assert not user.has_problems()
        assert user.out_of_view() == []

    return check


@template
def test_through_the_file_dialog(user, assert_open, template):
    user.choose_file(template)
    assert_open(template)


@template
def test_by_dropping_the_file(user, assert_open, template):
    user.drop_file(template)
    assert_open(template)


@template
def test_by_dropping_a_picture_that_carries_it(user, assert_open, template, tmp_path):
    text = PngInfo()
    # as the host's Save Image writes it
    text.add_text("workflow", json.dumps(json.loads(template.read_text(encoding="utf-8"))))
    picture = tmp_path / f"{template.stem}.png"
    Image.new("RGB", (8, 8)).save(picture, pnginfo=text)
    user.drop_file(picture)
    assert_open(template)


@template
def test_from_the_template_browser(user, assert_open, template):
    user.open_template(template.stem)
    assert_open(template)


def test_by_its_link(user, assert_open):
    user.visit(f"?template={TEMPLATES[0].stem}&source=quantflux")
    assert_open(TEMPLATES[0])


@pytest.fixture
def spoiled(tmp_path):
    """A function that writes a workflow with one change of its first node."""

    def write(**change):
        workflow = json.loads((REPOSITORY / "workflows" / "tiny_flux_text_to_image.json").read_text(encoding="utf-8"))
        workflow["nodes"][0] |= change
        path = tmp_path / "spoiled.json"
        path.write_text(json.dumps(workflow))
        return path

    return write


def test_a_workflow_that_breaks_the_schema_would_be_seen(user, spoiled):
    user.choose_file(spoiled(flags=3))
    user.page.wait_for_function("app.graph.nodes.length > 0")
    user.page.wait_for_selector(ALERTS)
    assert "Invalid workflow against zod schema" in "".join(user.alerts())


def test_a_node_that_the_host_does_not_have_would_be_seen(user, spoiled):
    user.choose_file(spoiled(type="NoSuchNode"))
    user.page.wait_for_function("app.graph.nodes.length > 0")
    assert user.unknown_nodes() == ["NoSuchNode"]
    assert "NoSuchNode" in user.read_error()
