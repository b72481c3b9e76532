"""The main job: a prompt becomes a picture, at every precision, and the same one every time."""

import pytest
from read_picture import pixel_hash, read_picture
from shape_scenes import prompts
from tiny_workflow import text_to_image

CAPTION, SHAPE, COLOUR = prompts(1, seed=11)[0]


def test_the_picture_shows_what_the_prompt_says(client, config):
    (picture,) = client.run(text_to_image(CAPTION, **config)).images
    assert picture.size == (128, 128)
    assert read_picture(picture) == (SHAPE, COLOUR)


def test_same_seed_same_bytes_also_after_unloading(client, config):
    graph = text_to_image(CAPTION, seed=3, **config)
    client.free()
    first = client.run(graph)
    client.free()  # the model is unloaded and the cache dropped, so that all is loaded, quantized and drawn again
    second = client.run(graph)
    assert first.files == second.files
    assert not cached_nodes(second)


def test_another_seed_draws_another_picture(client):
    one = client.run(text_to_image(CAPTION, seed=1))
    other = client.run(text_to_image(CAPTION, seed=2))
    assert pixel_hash(one.images[0]) != pixel_hash(other.images[0])


def test_another_precision_draws_another_picture(client):
    graphs = [text_to_image(CAPTION, precision=precision) for precision in ("none", "nf4", "fp4", "int8")]
    assert len({pixel_hash(client.run(graph).images[0]) for graph in graphs}) == 4


def test_a_batch_draws_different_pictures_of_the_prompt(client):
    graph = text_to_image(CAPTION)
    graph["latent"]["inputs"]["batch_size"] = 2
    one, other = client.run(graph).images
    assert read_picture(one) == read_picture(other) == (SHAPE, COLOUR)
    assert pixel_hash(one) != pixel_hash(other)


@pytest.mark.parametrize("node_id", ["transformer", "text_encoders"])
def test_fewer_bits_take_less_memory(client, node_id):
    graphs = {p: text_to_image(CAPTION, precision=p) for p in ("none", "int8", "nf4")}
    graphs["double"] = text_to_image(CAPTION, precision="nf4", double_quant=True)
    for graph in graphs.values():
        graph["sampler"]["inputs"]["steps"] = 1
    reports = {name: client.run(graph).outputs[node_id]["quantflux"][0] for name, graph in graphs.items()}
    sizes = {name: report["bytes"] for name, report in reports.items()}
    assert sizes["double"] < sizes["nf4"] < sizes["int8"] < sizes["none"]
    assert {report["bytes_16bit"] for report in reports.values()} == {sizes["none"]}


def cached_nodes(finished):
    """The nodes that the host took from its cache instead of running them."""
    messages = dict(finished.history["status"]["messages"])
    return messages["execution_cached"]["nodes"]
