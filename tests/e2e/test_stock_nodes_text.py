"""The stock nodes that work on our CLIP, its tokens or its conditionings: as they do on a CLIP of plain weights."""

import pytest
import torch
from loras import Maker
from stock_models import Studio, add_mask, node, small_graph, splice

CAPTION = "a large red circle on a white background"


@pytest.fixture(scope="module")
def studio(host, tmp_path_factory):
    studio = Studio(host, tmp_path_factory.mktemp("stock_nodes"), twin_text=True)
    m = Maker(0, 3.0)
    studio.add("embeddings", "both_encoders.safetensors", {"clip_l": m(2, 64), "t5xxl": m(2, 128)})
    studio.add("embeddings", "of_another_model.safetensors", {"t5xxl": m(2, 4096), "clip_l": m(2, 768)})
    return studio


def prompted(text):
    graph = small_graph()
    graph["prompt"]["inputs"]["text"] = text
    return graph


@pytest.mark.parametrize(
    ("class_type", "inputs"),
    [
        ("CLIPSetLastLayer", {"stop_at_clip_layer": -2}),
        ("CLIPAttentionMultiply", {"q": 1.0, "k": 1.0, "v": 1.5, "out": 1.0}),
        ("T5TokenizerOptions", {"min_padding": 0, "min_length": 0}),
    ],
)
def test_a_node_that_changes_clip_does_so_as_on_plain_weights(studio, class_type, inputs):
    graph = small_graph()
    splice(graph, "prompt", "clip", class_type, **inputs)
    studio.assert_effect(graph, small_graph())
    studio.assert_as_plain(graph)


# The small FLUX hardly listens to how large a token's vector is: seen 0.00008 and 0.009, the same on plain weights.
@pytest.mark.parametrize(("text", "least"), [("a large (red:1.3) circle", 1e-5), ("(a large red circle:3)", 5e-3)])
def test_token_weights_count_as_on_plain_weights(studio, text, least):
    unweighted = text.translate(str.maketrans("", "", "():.0123456789"))
    studio.assert_effect(prompted(text), prompted(unweighted), least=least)
    studio.assert_as_plain(prompted(text))


def test_clip_text_encode_flux_takes_a_prompt_for_each_encoder(studio):
    def encoded(clip_l, t5xxl):
        graph = small_graph()
        graph["guidance"] = node(
            "CLIPTextEncodeFlux", clip=["text_encoders", 0], clip_l=clip_l, t5xxl=t5xxl, guidance=3.5
        )
        return graph

    same = studio.draw(encoded(CAPTION, CAPTION))
    assert same.latent.equal(studio.draw(small_graph()).latent)
    for graph in (encoded("a blue square", CAPTION), encoded(CAPTION, "a blue square")):
        studio.assert_effect(graph, small_graph())
        studio.assert_as_plain(graph)


def test_textual_inversion_puts_the_vectors_of_a_file_into_both_encoders(studio):
    graph = prompted("a large embedding:both_encoders circle")
    studio.assert_effect(graph, prompted("a large circle"))
    studio.assert_as_plain(graph)


def test_textual_inversion_of_another_models_size_is_left_out_with_a_line_in_the_log(studio):
    before = len(studio.host.log)
    with_it = studio.draw(prompted("a large embedding:of_another_model circle"))
    assert "shape mismatch when trying to apply embedding" in studio.host.log[before:]
    assert with_it.latent.isfinite().all()


def test_conditioning_average_and_concat_join_prompts_as_on_plain_weights(studio):
    average = small_graph()
    average["other"] = node("CLIPTextEncode", clip=["text_encoders", 0], text="a small blue square")
    splice(
        average, "guidance", "conditioning", "ConditioningAverage", into="conditioning_to",
        conditioning_from=["other", 0], conditioning_to_strength=0.5,
    )  # fmt: skip
    concat = small_graph()
    concat["other"] = average["other"]
    splice(
        concat, "guidance", "conditioning", "ConditioningConcat", into="conditioning_to", conditioning_from=["other", 0]
    )
    for graph in (average, concat):
        studio.assert_effect(graph, small_graph())
        studio.assert_as_plain(graph)


@pytest.mark.parametrize("where", ["everywhere", "area", "area by percentage", "mask"])
def test_conditioning_combine_draws_two_prompts_where_each_belongs(studio, where):
    graph = small_graph(width=128, height=64)
    graph["other"] = node("CLIPTextEncode", clip=["text_encoders", 0], text="a small blue square")
    splice(graph, "guidance", "conditioning", "ConditioningCombine", into="conditioning_1", conditioning_2=["other", 0])
    (combine,) = [name for name in graph if name.startswith("ConditioningCombine")]
    if where == "area":
        area = {"width": 64, "height": 64, "x": 64, "y": 0, "strength": 1.0}
        splice(graph, combine, "conditioning_2", "ConditioningSetArea", into="conditioning", **area)
    elif where == "area by percentage":
        area = {"width": 0.5, "height": 1.0, "x": 0.5, "y": 0.0, "strength": 1.0}
        splice(graph, combine, "conditioning_2", "ConditioningSetAreaPercentage", into="conditioning", **area)
    elif where == "mask":
        mask = {"mask": [add_mask(graph), 0], "strength": 1.0, "set_cond_area": "default"}
        splice(graph, combine, "conditioning_2", "ConditioningSetMask", into="conditioning", **mask)
    studio.assert_effect(graph, small_graph(width=128, height=64), size=(128, 64))
    studio.assert_as_plain(graph)


def test_conditioning_set_timestep_range_ends_a_prompt_early(studio):
    graph = small_graph()
    graph["other"] = node("CLIPTextEncode", clip=["text_encoders", 0], text="a small blue square")
    splice(graph, "guidance", "conditioning", "ConditioningSetTimestepRange", start=0.0, end=0.5)
    graph["late"] = node("ConditioningSetTimestepRange", conditioning=["other", 0], start=0.5, end=1.0)
    splice(graph, "guidance", "conditioning", "ConditioningCombine", into="conditioning_1", conditioning_2=["late", 0])
    studio.assert_effect(graph, small_graph())
    studio.assert_as_plain(graph)


def test_conditioning_zero_out_is_the_prompt_that_says_nothing(studio):
    graph = small_graph()
    splice(graph, "guidance", "conditioning", "ConditioningZeroOut")
    drawing = studio.assert_effect(graph, small_graph())
    assert torch.isfinite(drawing.latent).all()
    studio.assert_as_plain(graph)
