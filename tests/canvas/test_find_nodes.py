"""Each node is found on the canvas by the name that people know it by."""

import json

import pytest
from comfy_host import REPOSITORY

NODES = json.loads((REPOSITORY / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))


def test_all_nodes_of_the_host_are_asked_for(client):
    ours = {name for name, one in client.get("/object_info").items() if one["category"].startswith("quantflux")}
    assert ours == set(NODES) and len(ours) == 10


@pytest.mark.parametrize("node", NODES)
def test_double_click_its_name_and_enter_put_a_node_on_the_canvas(user, node):
    user.find_node(NODES[node]["display_name"], 200, 700)
    assert user.types() == [node]
    assert user.page.evaluate("app.graph.nodes[0].title") == NODES[node]["display_name"]
