"""A transformer and a T5 from the Hub, in a host whose Hub is a local one."""

import pytest
from comfy_client import PromptFailed
from comfy_host import ComfyHost
from hub_server import running_hub
from read_picture import pixel_hash
from tiny_workflow import ASSETS, MODELS, text_to_image

CAPTION = "a large blue square in the center on a white background"


@pytest.fixture(scope="module")
def client_of_a_local_hub(tmp_path_factory):
    with running_hub() as hub, pytest.MonkeyPatch.context() as environment:
        hub.add("owner/flux", {"transformer.safetensors": (ASSETS / "flux_tiny.safetensors").read_bytes()})
        hub.add("owner/t5", {"encoder.safetensors": (ASSETS / "t5_tiny.safetensors").read_bytes()})
        environment.setenv("HF_ENDPOINT", hub.url)
        environment.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        environment.setenv("HF_HUB_DISABLE_XET", "1")
        environment.setenv("NO_PROXY", "127.0.0.1")
        with ComfyHost(models=MODELS) as host:
            yield host.client


def graph(transformer: str, t5: str):
    workflow = text_to_image(CAPTION)
    workflow["transformer"]["inputs"]["hub_repo"] = transformer
    workflow["text_encoders"]["inputs"]["hub_repo"] = t5
    workflow["sampler"]["inputs"]["steps"] = 4
    return workflow


def test_files_from_the_hub_draw_the_picture_of_the_same_local_files(client_of_a_local_hub):
    local = client_of_a_local_hub.run(graph("", "")).images[0]
    from_hub = client_of_a_local_hub.run(graph("owner/flux", "owner/t5")).images[0]
    assert pixel_hash(from_hub) == pixel_hash(local)


def test_a_repository_that_is_not_there_is_named_and_the_next_prompt_works(client_of_a_local_hub):
    with pytest.raises(PromptFailed, match="owner/nowhere: does not exist, or is private"):
        client_of_a_local_hub.run(graph("owner/nowhere", ""))
    assert client_of_a_local_hub.run(graph("owner/flux", "")).images
