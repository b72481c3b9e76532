"""Wrong files and wrong settings: the host shows what is wrong, why, and what to do, and goes on working."""

import re

import pytest
from bad_input import BAD_SETTINGS, NO_T5, NO_TRANSFORMERS
from comfy_client import PromptFailed, PromptRejected
from tiny_workflow import text_to_image

# ComfyUI 0.3.75 leaves the choices of V3 nodes unchecked, so the node refuses a wrong one; newer ones refuse it first.
REFUSED = (PromptRejected, PromptFailed)


@pytest.fixture
def short_graph():
    graph = text_to_image("a red circle")
    graph["sampler"]["inputs"]["steps"] = 1
    return graph


@pytest.fixture
def offer(host, tmp_path):
    """A function that puts a file into one of the host's model folders."""

    def put(folder, name, content):
        file = tmp_path / name
        file.write_bytes(content())
        host.add_model(folder, file)

    return put


def assert_error_then_recovery(client, bad, good, file_name, cause, way_out):
    with pytest.raises(PromptFailed) as caught:
        client.run(bad)
    message = str(caught.value)
    assert file_name in message
    assert re.search(cause, message)
    assert re.search(way_out, message)
    assert len(client.run(good).images) == 1


@pytest.mark.parametrize("name", NO_TRANSFORMERS)
def test_a_file_that_is_no_flux_is_named_and_explained(client, offer, short_graph, name):
    content, cause, way_out = NO_TRANSFORMERS[name]
    offer("diffusion_models", name, content)
    bad = {**short_graph, "transformer": {**short_graph["transformer"]}}
    bad["transformer"]["inputs"] = {**short_graph["transformer"]["inputs"], "model_name": name}
    assert_error_then_recovery(client, bad, short_graph, name, cause, way_out)


@pytest.mark.parametrize("name", NO_T5)
def test_a_file_that_is_no_t5_is_named_and_explained(client, offer, short_graph, name):
    content, cause, way_out = NO_T5[name]
    offer("text_encoders", name, content)
    bad = {**short_graph, "text_encoders": {**short_graph["text_encoders"]}}
    bad["text_encoders"]["inputs"] = {**short_graph["text_encoders"]["inputs"], "t5_name": name}
    assert_error_then_recovery(client, bad, short_graph, name, cause, way_out)


@pytest.mark.parametrize("setting", BAD_SETTINGS)
def test_a_setting_out_of_range_is_named_with_its_value(client, short_graph, setting):
    bad = {**short_graph, "config": {**short_graph["config"]}}
    bad["config"]["inputs"] = {**short_graph["config"]["inputs"], setting: BAD_SETTINGS[setting]}
    with pytest.raises(REFUSED) as caught:
        client.run(bad)
    assert setting in str(caught.value)
    assert str(BAD_SETTINGS[setting]) in str(caught.value)
    assert len(client.run(short_graph).images) == 1


def test_a_number_out_of_range_is_refused_before_anything_runs(client, short_graph):
    short_graph["config"]["inputs"]["int8_threshold"] = -1.0
    with pytest.raises(PromptRejected, match=r"QuantFluxConfig \(config\): .*int8_threshold"):
        client.run(short_graph)


def test_a_file_that_is_gone_is_named(client, short_graph):
    short_graph["transformer"]["inputs"]["model_name"] = "gone.safetensors"
    with pytest.raises(REFUSED, match=r"gone\.safetensors"):
        client.run(short_graph)
