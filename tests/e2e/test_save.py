"""A model saved by one workflow is loaded by the next, under the name that the list then shows."""

import pytest
from comfy_client import PromptFailed
from read_picture import pixel_hash
from shape_scenes import prompts
from tiny_workflow import text_to_image

CAPTION, _, _ = prompts(1, seed=11)[0]


def saving(prefix: str, format: str, **config) -> dict:
    graph = text_to_image(CAPTION, **config)
    graph["save_model"] = {
        "class_type": "QuantFluxSave",
        "inputs": {
            "model": ["transformer", 0], "clip": ["text_encoders", 0], "filename_prefix": prefix, "format": format
        },
    }  # fmt: skip
    return graph


@pytest.mark.parametrize("format", ["single file", "diffusers folder"])
def test_the_saved_model_draws_the_same_picture(client, format):
    prefix = f"e2e/{format.replace(' ', '-')}"
    # transformers leaves wo at 16 bit; so that both pictures have the same arithmetic, it is so here too
    first = client.run(saving(prefix, format, precision="nf4", skip_modules="wo"))
    saved = first.outputs["save_model"]["quantflux"]
    suffix = ".safetensors" if format == "single file" else ""
    name = f"{prefix}_00001_{suffix}"
    assert [figure["path"] for figure in saved] == [f"diffusion_models/{name}", f"clip/{name}"]
    assert all(figure["bytes"] > 100_000 for figure in saved)

    client.free()
    graph = text_to_image(CAPTION)
    del graph["config"]
    for node_id, widget in (("transformer", "model_name"), ("text_encoders", "t5_name")):
        del graph[node_id]["inputs"]["config"]
        graph[node_id]["inputs"][widget] = name
    second = client.run(graph)
    assert second.outputs["transformer"]["quantflux"][0]["precision"] == "nf4"
    assert pixel_hash(second.images[0]) == pixel_hash(first.images[0])


def test_a_prefix_that_leaves_the_output_folder_is_refused(client):
    with pytest.raises(PromptFailed, match="has to stay within diffusion_models in the output folder"):
        client.run(saving("../../escaped", "single file"))
