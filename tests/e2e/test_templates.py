"""Every template in workflows/api runs on small models under the names it uses: as shipped, but for sizes and steps.

The one that takes its models from the Hub is run in test_hub_repo.py.
"""

from tempfile import TemporaryDirectory

import pytest
from PIL import ImageChops, ImageStat
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.source import flux_source, t5_source
from read_picture import pixel_hash, read_picture
from shape_scenes import prompts
from template_models import add_controlnet, add_stand_ins, example_picture, small
from tiny_workflow import load_workflow

CAPTION, SHAPE, COLOUR = prompts(1, seed=11)[0]
# the templates that draw what the prompt says, and what their loader says of the transformer
DRAWING = {
    "tiny_flux_text_to_image": "nf4",
    "flux_dev_text_to_image": "nf4",
    "flux_dev_8bit": "int8",
    "flux_dev_low_vram": "nf4",
    "flux_dev_compile": "nf4",
}


@pytest.fixture(scope="module")
def draw(host, tmp_path_factory):
    """A function that runs a graph, each only once, and returns what it made."""
    add_stand_ins(host, tmp_path_factory.mktemp("templates"))
    host.client.free()  # what is in the cache from others' graphs would not be told again
    done = {}

    def run(graph):
        key = repr(graph)
        if key not in done:
            done[key] = host.client.run(graph)
        return done[key]

    return run


def difference(one, other) -> float:
    """Mean difference of two pictures, of 255."""
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3


@pytest.mark.parametrize("name", DRAWING)
def test_it_draws_what_the_prompt_says_at_its_precision(draw, name):
    graph = small(name, CAPTION, steps=8)
    finished = draw(graph)
    (picture,) = finished.images
    assert read_picture(picture) == (SHAPE, COLOUR)
    assert finished.outputs["transformer"]["quantflux"][0]["precision"] == DRAWING[name]
    if "compile" in graph:
        assert finished.outputs["compile"]["quantflux"][0]["steps"] > 0


def test_low_vram_takes_fewer_bytes_and_its_tiles_make_the_whole_picture(draw):
    tiled = small("flux_dev_low_vram", CAPTION, steps=8)
    tiled["decode"]["inputs"] |= {"tile_size": 64, "overlap": 16}
    whole = small("flux_dev_low_vram", CAPTION, steps=8)
    whole["decode"] = {"class_type": "VAEDecode", "inputs": {"samples": ["sampler", 0], "vae": ["vae", 0]}}
    one, other = draw(tiled), draw(whole)
    assert 0 < difference(one.images[0], other.images[0]) < 4
    nf4 = draw(small("flux_dev_text_to_image", CAPTION, steps=8))
    for loader in ("transformer", "text_encoders"):
        assert one.outputs[loader]["quantflux"][0]["bytes"] < nf4.outputs[loader]["quantflux"][0]["bytes"]


def test_each_lora_of_the_stack_changes_the_picture(draw):
    def with_strengths(first, second):
        graph = small("flux_dev_lora_stack", CAPTION, steps=8)
        graph["lora"]["inputs"] |= {"strength_model": first, "strength_clip": first}
        graph["second_lora"]["inputs"]["strength_model"] = second
        return draw(graph).images[0]

    both, first, second, none = (with_strengths(*pair) for pair in ((1.0, 0.125), (1.0, 0), (0, 0.125), (0, 0)))
    assert len({pixel_hash(picture) for picture in (both, first, second, none)}) == 4
    assert both.size == (128, 128)
    without = small("flux_dev_lora_stack", CAPTION, steps=8)
    without["prompt"]["inputs"]["clip"], without["sampler"]["inputs"]["model"] = (
        ["text_encoders", 0],
        ["transformer", 0],
    )
    del without["lora"], without["second_lora"]
    assert pixel_hash(draw(without).images[0]) == pixel_hash(none)


def test_the_controlnet_sees_the_edges_and_changes_the_picture(host, draw):
    def at_strength(strength):
        graph = small("flux_dev_controlnet", CAPTION, steps=1)
        graph["apply"]["inputs"]["strength"] = strength
        return draw(graph)

    # pytest would keep the gigabyte of the last three runs
    with TemporaryDirectory(prefix="template-models-") as folder:
        add_controlnet(host, folder)
        with_it, without = at_strength(0.4), at_strength(0.0)
        host.client.free()
    edges, picture = with_it.images
    assert edges.getbbox() == pytest.approx((16, 16, 65, 65), abs=3)  # those of the blue square
    assert difference(picture, without.images[1]) > 4


def test_kontext_sees_the_picture_that_it_edits(draw):
    def edited(seen):
        graph = small("flux_kontext_edit", CAPTION, steps=4)
        if not seen:
            graph["guidance"]["inputs"]["conditioning"] = ["prompt", 0]
            del graph["reference"]
        (picture,) = draw(graph).images
        return picture

    with_it, without = edited(True), edited(False)
    assert with_it.size == without.size == (128, 128)
    assert difference(with_it, without) > 2


def test_fill_draws_under_the_mask_and_keeps_the_rest(draw):
    (picture,) = draw(small("flux_fill_inpaint", CAPTION, steps=8)).images
    source = example_picture().convert("RGB")
    masked, kept = (64, 64, 128, 128), (0, 0, 128, 56)
    assert difference(picture.crop(kept), source.crop(kept)) < 4
    assert difference(picture.crop(masked), source.crop(masked)) > 8


def test_the_packed_files_open_as_what_they_are(host, draw):
    figures = draw(load_workflow("flux_dev_save_packed")).outputs["save_model"]["quantflux"]
    assert [figure["path"].rpartition("_")[0][:-6] for figure in figures] == [
        "diffusion_models/flux1-dev-nf4", "clip/flux1-dev-nf4"
    ]  # fmt: skip
    for figure, find in zip(figures, (flux_source, t5_source), strict=True):
        source = find(open_checkpoint(host.base / "output" / figure["path"]), None)
        assert source.config.precision == "nf4"
        assert (host.base / "output" / figure["path"]).stat().st_size == figure["bytes"]


def test_every_report_is_shown_with_its_chart(draw):
    finished = draw(small("flux_dev_plan_and_quality", CAPTION, steps=2))
    for report, word in (("plan", "double quant"), ("quality", "velocity"), ("memory", "transformer")):
        (text,) = finished.outputs[report]["text"]
        assert finished.outputs[f"{report}_text"]["text"] == [f"```\n{text}\n```"]
        assert word in text.lower()
        assert [file.kind for file in finished.saved if file.node_id == f"{report}_chart"] == ["images"]
    assert 0.05 < finished.outputs["quality"]["quantflux"][0]["weight"] < 0.15
    assert {picture.width for picture in finished.images} == {1024}
