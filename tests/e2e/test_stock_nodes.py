"""The stock nodes that sample with our MODEL or change how it is sampled, at every size and batch."""

import pytest
from stock_models import CLOSE, Studio, add_mask, add_picture, node, small_graph, splice

# Nodes that change a MODEL, with inputs that make FLUX feel them.
MODEL_NODES = {
    "ModelSamplingFlux": {"max_shift": 3.0, "base_shift": 2.0, "width": 1024, "height": 1024},
    "SkipLayerGuidanceDiT": {
        "double_layers": "1", "single_layers": "1, 2", "scale": 2.0, "start_percent": 0.0, "end_percent": 1.0,
        "rescaling_scale": 0.3,
    },
    "SkipLayerGuidanceDiTSimple": {
        "double_layers": "1", "single_layers": "1, 2", "start_percent": 0.0, "end_percent": 1.0
    },
    "RescaleCFG": {"multiplier": 0.9},
    "CFGZeroStar": {},
    "CFGNorm": {"strength": 0.8},
    "TCFG": {},
    "APG": {"eta": 0.3, "norm_threshold": 3.0, "momentum": 0.2},
    "Mahiro": {},
    "FreSca": {"scale_low": 1.0, "scale_high": 2.0, "freq_cutoff": 1},
    "Epsilon Scaling": {"scaling_factor": 1.2},
    "TemporalScoreRescaling": {"tsr_k": 0.8, "tsr_sigma": 1.0},
    "ScaleROPE": {"scale_x": 2.0, "shift_x": 0.0, "scale_y": 2.0, "shift_y": 0.0, "scale_t": 1.0, "shift_t": 0.0},
    "EasyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
    "LazyCache": {"reuse_threshold": 3.0, "start_percent": 0.0, "end_percent": 1.0, "verbose": False},
    "RenormCFG": {"cfg_trunc": 100.0, "renorm_cfg": 0.3},
}  # fmt: skip
# They hook into parts that only UNets have: on any FLUX, packed or not, they change nothing.
UNET_NODES = {
    "PatchModelAddDownscale": {
        "block_number": 1, "downscale_factor": 2.0, "start_percent": 0.0, "end_percent": 1.0,
        "downscale_after_skip": True, "downscale_method": "bicubic", "upscale_method": "bicubic",
    },
    "PerturbedAttentionGuidance": {"scale": 3.0},
    "UNetSelfAttentionMultiply": {"q": 2.0, "k": 1.0, "v": 1.0, "out": 1.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def studio(host, tmp_path_factory):
    return Studio(host, tmp_path_factory.mktemp("stock_nodes"))


def test_the_comparison_with_plain_weights_tells_them_from_the_original_ones(studio):
    original = small_graph()
    original["config"]["inputs"]["precision"] = "none"
    assert studio.draw(small_graph()).error(studio.draw(original)) > 2 * CLOSE


def custom_sampling(guider="BasicGuider", **inputs):
    """The small workflow with SamplerCustomAdvanced in the place of KSampler."""
    graph = small_graph()
    conditioning = {"conditioning": ["guidance", 0]}
    if guider == "CFGGuider":
        conditioning = {"positive": ["guidance", 0], "negative": ["negative", 0]}
    graph |= {
        "noise": node("RandomNoise", noise_seed=5),
        "guider": node(guider, model=["transformer", 0], **conditioning, **inputs),
        "chosen": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("BasicScheduler", model=["transformer", 0], scheduler="simple", steps=3, denoise=1.0),
        "sampler": node(
            "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["chosen", 0],
            sigmas=["sigmas", 0], latent_image=["latent", 0],
        ),
    }  # fmt: skip
    return graph


@pytest.mark.parametrize("class_type", MODEL_NODES)
def test_a_node_that_changes_sampling_does_so_as_on_plain_weights(studio, class_type):
    graph = small_graph(cfg=3.0)
    splice(graph, "sampler", "model", class_type, **MODEL_NODES[class_type])
    studio.assert_effect(graph, small_graph(cfg=3.0))
    studio.assert_as_plain(graph)


@pytest.mark.parametrize("class_type", UNET_NODES)
def test_a_node_for_unets_leaves_flux_as_it_is(studio, class_type):
    graph = small_graph()
    splice(graph, "sampler", "model", class_type, **UNET_NODES[class_type])
    assert studio.draw(graph).error(studio.draw(small_graph())) < 1e-5


def test_differential_diffusion_lets_a_grey_mask_change_the_picture_by_degrees(studio):
    def masked(differential):
        graph = small_graph(steps=4)
        pixels = add_picture(graph)
        add_mask(graph)
        graph["encode"] = node("VAEEncode", pixels=[pixels, 0], vae=["vae", 0])
        graph["grey mask"] = node("MaskComposite", destination=["mask", 0], source=["quarter", 0], x=0, y=0,
                                  operation="add")  # fmt: skip
        graph["quarter"] = node("SolidMask", value=0.5, width=32, height=64)
        graph["sampler"]["inputs"]["latent_image"] = ["encode", 0]
        splice(graph, "sampler", "latent_image", "SetLatentNoiseMask", into="samples", mask=["grey mask", 0])
        if differential:
            splice(graph, "sampler", "model", "DifferentialDiffusion", strength=1.0)
        return graph

    studio.assert_effect(masked(True), masked(False))
    studio.assert_as_plain(masked(True))


def test_flux_guidance_steers_and_flux_disable_guidance_removes_it(studio):
    weak, none = small_graph(), small_graph()
    weak["guidance"]["inputs"]["guidance"] = 1.0
    splice(none, "sampler", "positive", "FluxDisableGuidance", into="conditioning")
    for graph in (weak, none):
        studio.assert_effect(graph, small_graph())
        studio.assert_as_plain(graph)
    studio.assert_effect(none, weak)


def test_sampler_custom_advanced_with_a_basic_guider_draws_what_ksampler_draws(studio):
    custom = studio.draw(custom_sampling())
    assert custom.latent.equal(studio.draw(small_graph()).latent)


def test_sampler_custom_advanced_with_a_cfg_guider_draws_what_ksampler_draws(studio):
    custom = studio.draw(custom_sampling("CFGGuider", cfg=3.0))
    assert custom.latent.equal(studio.draw(small_graph(cfg=3.0)).latent)


def test_ksampler_advanced_draws_in_two_parts_what_ksampler_draws_at_once(studio):
    graph = small_graph(steps=4)
    inputs = graph["sampler"]["inputs"]
    common = {key: inputs[key] for key in inputs if key not in ("seed", "denoise", "latent_image")}
    graph["first"] = node(
        "KSamplerAdvanced", **common, noise_seed=5, add_noise="enable", start_at_step=0, end_at_step=2,
        return_with_leftover_noise="enable", latent_image=["latent", 0],
    )  # fmt: skip
    graph["sampler"] = node(
        "KSamplerAdvanced", **common, noise_seed=5, add_noise="disable", start_at_step=2, end_at_step=4,
        return_with_leftover_noise="disable", latent_image=["first", 0],
    )  # fmt: skip
    assert studio.draw(graph).error(studio.draw(small_graph(steps=4))) < 1e-5


@pytest.mark.parametrize("sampler_name", ["dpmpp_2m", "heun", "uni_pc"])
def test_another_sampler_draws_as_on_plain_weights(studio, sampler_name):
    graph = small_graph(sampler_name=sampler_name, scheduler="beta")
    studio.assert_effect(graph, small_graph())
    studio.assert_as_plain(graph)


@pytest.mark.parametrize(("width", "height"), [(72, 104), (136, 120), (64, 192), (16, 16)])
def test_any_size_that_the_latent_takes_is_drawn_as_on_plain_weights(studio, width, height):
    graph = small_graph(width=width, height=height)
    # the host's latent counts in eighths; FLUX's patches of two are padded
    assert studio.draw(graph).sizes == [(width, height)]
    studio.assert_as_plain(graph)


def test_a_batch_of_four_is_four_pictures_of_which_the_first_is_that_of_a_batch_of_one(studio):
    graph = small_graph()
    graph["latent"]["inputs"]["batch_size"] = 4
    four = studio.draw(graph)
    assert four.sizes == [(64, 64)] * 4
    one = studio.draw(small_graph())
    assert (four.latent[:1] - one.latent).norm() < 1e-3 * one.latent.norm()
    assert all((four.latent[i] - four.latent[0]).norm() > 0.1 * one.latent.norm() for i in range(1, 4))
    studio.assert_as_plain(graph)
