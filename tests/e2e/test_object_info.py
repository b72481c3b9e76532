"""What saved workflows rely on: ids, inputs in their order, defaults and outputs of every node stay as released."""

import json
from pathlib import Path

import pytest

RELEASED = json.loads(Path(__file__).with_name("object_info.json").read_text())
# These lists are files on the user's disk.
FILE_COMBOS = {"model_name", "t5_name", "clip_l_name"}
# These are what is installed, and what the host has.
MACHINE_COMBOS = {"backend", "scheduler"}


def described(info):
    """The part of the host's description of a node that workflows rely on, in the form of object_info.json."""
    return {
        "display_name": info["display_name"],
        "category": info["category"],
        "output_node": info["output_node"],
        "outputs": info["output"],
        "required": described_inputs(info, "required"),
        "optional": described_inputs(info, "optional"),
    }


def described_inputs(info, section):
    return [
        described_input(name, *info["input"][section][name]) for name in info.get("input_order", {}).get(section, [])
    ]


def described_input(name, type_, options=None):
    options = options or {}
    if isinstance(type_, list):  # how older nodes write a combo
        type_, options = "COMBO", {"options": type_, **options}
    if name in FILE_COMBOS:
        return [name, type_, {}]
    kept = ("default",) if name in MACHINE_COMBOS else ("default", "options")
    return [name, type_, {key: options[key] for key in kept if options.get(key) is not None}]


@pytest.mark.parametrize("node_id", RELEASED)
def test_a_node_is_as_released(client, node_id):
    (info,) = client.get(f"/object_info/{node_id}").values()
    assert described(info) == RELEASED[node_id]


def test_every_node_of_ours_is_in_the_snapshot(client):
    ours = {name for name, info in client.get("/object_info").items() if info["category"].startswith("quantflux")}
    assert ours == set(RELEASED)
