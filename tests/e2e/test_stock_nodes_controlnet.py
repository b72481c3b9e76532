"""A union ControlNet of the form that InstantX's and Shakker's have, on packed weights."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from stock_models import Studio, add_picture, node, small_graph, union_controlnet, wide_flux

WIDE_FLUX, CONTROLNET = "wide_flux.safetensors", "union_controlnet.safetensors"


@pytest.fixture(scope="module")
def studio(host):
    # 1.7 GB, of which pytest would keep those of the last three runs
    with TemporaryDirectory(prefix="stock-nodes-") as folder:
        studio = Studio(host, Path(folder))
        # at 16 bit, since at 32 it would be twice as large
        studio.add_flux(WIDE_FLUX, wide_flux(), twin_dtype=torch.bfloat16)
        studio.add("controlnet", CONTROLNET, union_controlnet())
        yield studio
        host.client.free()


def controlled(control_type=None, **changes):
    """A picture of one step with a ControlNet, without one if no type is given."""
    graph = small_graph(WIDE_FLUX, steps=1)
    if control_type is None:
        return graph
    picture = add_picture(graph)
    apply = {"strength": 0.6, "start_percent": 0.0, "end_percent": 1.0} | changes
    graph |= {
        "load": node("ControlNetLoader", control_net_name=CONTROLNET),
        "typed": node("SetUnionControlNetType", control_net=["load", 0], type=control_type),
        "apply": node(
            "ControlNetApplyAdvanced", positive=["guidance", 0], negative=["negative", 0], control_net=["typed", 0],
            image=[picture, 0], vae=["vae", 0], **apply,
        ),
    }  # fmt: skip
    graph["sampler"]["inputs"] |= {"positive": ["apply", 0], "negative": ["apply", 1]}
    return graph


def test_a_union_controlnet_steers_as_it_steers_plain_weights(studio):
    depth = controlled("depth")
    studio.assert_effect(depth, controlled())
    # the twin's weights were rounded to bfloat16: 0.4 % each
    studio.assert_as_plain(depth, bound=0.02)


def test_each_type_of_a_union_controlnet_steers_in_its_own_way(studio):
    # the type is one token among 257, and its embedding is random: seen 0.004
    studio.assert_effect(controlled("canny/lineart/anime_lineart/mlsd"), controlled("depth"), least=1e-3)


def test_a_controlnet_of_strength_zero_draws_the_picture_without_it_to_the_bit(studio):
    assert studio.draw(controlled("depth", strength=0.0)).latent.equal(studio.draw(controlled()).latent)
