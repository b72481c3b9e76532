"""The stock nodes that have FLUX look at a picture: Kontext, Fill, inpainting, Canny and Depth."""

import pytest
from stock_models import Studio, add_mask, add_picture, node, small_graph, splice, widened_flux

FILL, CANNY = "fill.safetensors", "canny.safetensors"


@pytest.fixture(scope="module")
def studio(host, tmp_path_factory):
    studio = Studio(host, tmp_path_factory.mktemp("stock_nodes"))
    # Kontext has the shapes of the base model; these two have more input channels
    studio.add_flux(FILL, widened_flux(384))
    studio.add_flux(CANNY, widened_flux(128))
    return studio


def with_reference(*colours, scaled=False, method=None):
    """The prompt with pictures of these colours as references."""
    graph = small_graph(steps=1 if scaled else 3)
    for colour in colours:
        name = f"picture {colour:x}"
        graph[name] = node("EmptyImage", width=64, height=48, batch_size=1, color=colour)
        if scaled:
            # to a megapixel; a quarter of it is enough to see that FLUX takes many more tokens of it than it draws
            graph[f"scaled {name}"] = node("FluxKontextImageScale", image=[name, 0])
            graph[f"halved {name}"] = node(
                "ImageScaleBy", image=[f"scaled {name}", 0], upscale_method="area", scale_by=0.5
            )
            name = f"halved {name}"
        graph[f"encoded {name}"] = node("VAEEncode", pixels=[name, 0], vae=["vae", 0])
        splice(graph, "guidance", "conditioning", "ReferenceLatent", latent=[f"encoded {name}", 0])
    if method:
        splice(
            graph, "guidance", "conditioning", "FluxKontextMultiReferenceLatentMethod", reference_latents_method=method
        )
    return graph


def test_kontext_sees_its_reference_as_with_plain_weights(studio):
    red, blue = with_reference(0xFF0000), with_reference(0x0000FF)
    studio.assert_effect(red, small_graph())
    studio.assert_effect(red, blue)
    studio.assert_as_plain(red)


@pytest.mark.parametrize("method", ["offset", "index", "uxo/uno"])
def test_kontext_sees_two_references_in_every_way_of_placing_them(studio, method):
    graph = with_reference(0xFF0000, 0x0000FF, method=method)
    studio.assert_effect(graph, with_reference(0xFF0000))
    studio.assert_as_plain(graph)


def test_kontext_sees_a_reference_that_flux_kontext_image_scale_made_large(studio):
    graph = with_reference(0xFF0000, scaled=True)
    studio.assert_effect(graph, small_graph(steps=1))
    studio.assert_as_plain(graph)


def with_fill(mask=True, noise_mask=True):
    """The small Fill model that fills in the right half of a picture, or draws without one."""
    graph = small_graph(FILL)
    if mask:
        pixels = add_picture(graph)
        graph["inpaint"] = node(
            "InpaintModelConditioning", positive=["guidance", 0], negative=["negative", 0], vae=["vae", 0],
            pixels=[pixels, 0], mask=[add_mask(graph), 0], noise_mask=noise_mask,
        )  # fmt: skip
        graph["sampler"]["inputs"] |= {
            "positive": ["inpaint", 0], "negative": ["inpaint", 1], "latent_image": ["inpaint", 2]
        }  # fmt: skip
    return graph


@pytest.mark.parametrize("noise_mask", [True, False])
def test_fill_sees_picture_and_mask_as_with_plain_weights(studio, noise_mask):
    graph = with_fill(noise_mask=noise_mask)
    studio.assert_effect(graph, with_fill(mask=False))
    studio.assert_as_plain(graph)


def test_fill_draws_something_else_for_another_mask(studio):
    inverted = with_fill(noise_mask=False)
    splice(inverted, "inpaint", "mask", "InvertMask")
    studio.assert_effect(inverted, with_fill(noise_mask=False))


def test_the_base_model_inpaints_under_a_noise_mask_and_keeps_the_rest(studio):
    graph = small_graph()
    pixels = add_picture(graph)
    graph["encode"] = node("VAEEncode", pixels=[pixels, 0], vae=["vae", 0])
    graph["sampler"]["inputs"]["latent_image"] = ["encode", 0]
    splice(graph, "sampler", "latent_image", "SetLatentNoiseMask", into="samples", mask=[add_mask(graph), 0])
    untouched = small_graph()
    untouched |= {name: graph[name] for name in (pixels, "grey", "blue", "encode")}
    untouched["decode"]["inputs"]["samples"] = ["encode", 0]

    inpainted = studio.assert_effect(graph, untouched)
    kept, drawn = inpainted.latent[..., :4], inpainted.latent[..., 4:]
    before = studio.draw(untouched).latent
    assert (kept - before[..., :4]).norm() < 1e-5 * before.norm()
    assert (drawn - before[..., 4:]).norm() > 0.05 * before.norm()
    studio.assert_as_plain(graph)


def with_control_picture(colour=None):
    """The small Canny or Depth model with a picture of this colour beside its noise, or without one."""
    graph = small_graph(CANNY)
    if colour is not None:
        graph["picture"] = node("EmptyImage", width=64, height=64, batch_size=1, color=colour)
        graph["control"] = node(
            "InstructPixToPixConditioning", positive=["guidance", 0], negative=["negative", 0], vae=["vae", 0],
            pixels=["picture", 0],
        )  # fmt: skip
        graph["sampler"]["inputs"] |= {
            "positive": ["control", 0], "negative": ["control", 1], "latent_image": ["control", 2]
        }  # fmt: skip
    return graph


def test_canny_and_depth_models_see_their_picture_as_with_plain_weights(studio):
    white, black = with_control_picture(0xFFFFFF), with_control_picture(0x000000)
    studio.assert_effect(white, with_control_picture())
    studio.assert_effect(white, black)
    studio.assert_as_plain(white)
