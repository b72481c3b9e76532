"""The Quality Report node against the host's own sampling, predictions and layers, run one by one."""

import copy
import csv
import io
import json
import math

import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.model_management
import comfy.ops
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import loras
import pytest
import small_models
import torch
from flux_predictions import predict
from quantflux.nodes.host import quality
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.layer_pairs import OwnWeights, common
from quantflux.nodes.host.quality import _differences
from quantflux.nodes.quality import QuantFluxQuality
from quantflux.nodes.quantize import QuantFluxQuantize
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import ConfigError
from quantflux.quant_core.layouts import dequantize
from quantflux.quant_core.quality import relative_error
from quantflux.quant_core.source import flux_source
from safetensors.torch import load_file

STEPS, SEED = 2, 7
NAME = "single_blocks.1.linear1"


@pytest.fixture(scope="module")
def models(flux_file):
    """The same file at 16 bit, at NF4 and at int8."""
    configs = {"plain": QuantConfig("none"), "nf4": QuantConfig("nf4"), "int8": QuantConfig("int8")}
    with torch.inference_mode():
        return {name: load_flux_model(flux_source(open_checkpoint(flux_file), c)) for name, c in configs.items()}


def conditioning(seed: int = 0) -> list:
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.randn(1, 64, generator=generator)
    return [[torch.randn(1, 16, 128, generator=generator), {"pooled_output": pooled, "guidance": 3.5}]]


def latent(batch: int = 1, **more) -> dict:
    return {"samples": torch.zeros(batch, 16, 8, 8)} | more


def report(reference, model, **changes) -> dict:
    """What the node found; what it shows is looked at on the way."""
    given = {"positive": conditioning(), "latent_image": latent(), "steps": STEPS, "seed": SEED}
    output = QuantFluxQuality.execute(reference=reference, model=model, **(given | changes))
    shown, chart, table = output.args
    (figures,) = output.ui["quantflux"]
    (text,) = output.ui["text"]
    assert shown == f"```\n{text}\n```" and figures["csv"] == table
    assert chart.shape[0] == 1 and chart.shape[2:] == (1024, 3)
    rows = list(csv.DictReader(io.StringIO(table)))
    assert len([row for row in rows if row["measure"] == "velocity"]) == len(figures["steps"])
    json.dumps(figures, allow_nan=False)
    return figures | {"text": text, "rows": rows}


def errors_of(found) -> list[float]:
    layers = [error for layer in found["layers"] for error in (layer["weight"], layer["output"]) if error is not None]
    steps = [error for step in found["steps"] for error in (step["velocity"], step["drift"])]
    return [found["velocity"], found["drift"], found["weight"], *steps, *layers]


def sampled(patcher, cfg=1.0, negative=None, latent_image=None):
    """(x before each step, denoised at each step, final latent), as the host's KSampler does it."""
    seen, given = [], latent_image or latent()
    noise = comfy.sample.prepare_noise(given["samples"], SEED)
    final = comfy.sample.sample(
        patcher, noise, STEPS, cfg, "euler", "simple", conditioning(), negative or conditioning(), given["samples"],
        noise_mask=given.get("noise_mask"), seed=SEED,
        callback=lambda step, denoised, x, total: seen.append((x.cpu().clone(), denoised.cpu().clone())),
    )  # fmt: skip
    return [x for x, _ in seen], [denoised for _, denoised in seen], patcher.model.process_latent_in(final)


@pytest.mark.parametrize("kind", ["plain", "nf4", "int8"])
def test_a_model_against_itself_is_apart_by_exactly_nothing(models, kind):
    found = report(models[kind], models[kind].clone(), layer_outputs=True)
    assert set(errors_of(found)) == {0.0}
    assert {step["cosine"] for step in found["steps"]} == {1.0}
    assert any(layer["output"] is not None for layer in found["layers"])


def test_two_loads_of_one_file_are_apart_by_nothing_but_the_order_of_sums(models, flux_file):
    # where a tensor begins in memory decides which of its kernels the CPU takes
    again = load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig("nf4")))
    found = report(models["nf4"], again, layer_outputs=True)
    assert max(errors_of(found)) < 1e-5
    assert {layer["weight"] for layer in found["layers"]} == {0.0}


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_velocity_is_that_of_the_model_at_the_references_latents(models, kind):
    found = report(models["plain"], models[kind])
    latents, denoised, final = sampled(models["plain"])
    own, _, own_final = sampled(models[kind])
    sigmas = comfy.samplers.calculate_sigmas(models["plain"].get_model_object("model_sampling"), "simple", STEPS)
    comfy.model_management.load_models_gpu([models[kind]])
    (context, options), device = conditioning()[0], models[kind].load_device
    for i, step in enumerate(found["steps"]):
        at = {"c_crossattn": context, "y": options["pooled_output"], "guidance": torch.tensor([3.5])}
        at = {name: tensor.to(device) for name, tensor in at.items()}
        ours = models[kind].model.apply_model(latents[i].to(device), sigmas[i : i + 1].to(device), **at).cpu()
        expected = [(latents[i] - one) / sigmas[i] for one in (denoised[i], ours)]
        assert step["sigma"] == pytest.approx(sigmas[i].item())
        assert step["velocity"] == pytest.approx(relative_error(*expected), rel=1e-3)
        assert step["velocity"] > 0.003
        drifted = relative_error([*latents[1:], final][i], [*own[1:], own_final][i])
        assert step["drift"] == pytest.approx(drifted, rel=1e-3)
    assert found["drift"] == found["steps"][-1]["drift"]


def test_the_same_inputs_give_the_same_numbers(models):
    first = report(models["plain"], models["nf4"], layer_outputs=True)
    comfy.model_management.unload_all_models()
    assert report(models["plain"], models["nf4"], layer_outputs=True) == first
    # nor do layer outputs change anything else
    assert report(models["plain"], models["nf4"])["steps"] == first["steps"]
    assert report(models["plain"], models["nf4"], seed=SEED + 1)["steps"] != first["steps"]


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_weight_errors_are_those_of_the_files_weights(models, flux_file, kind):
    found = report(models["plain"], models[kind], steps=1)
    stored = {n: t for n, t in load_file(flux_file).items() if n.endswith(".weight") and t.ndim == 2}
    assert {layer["name"] + ".weight" for layer in found["layers"]} == set(stored)
    for layer in found["layers"]:
        packed = comfy.utils.get_attr(models[kind].model.diffusion_model, layer["name"] + ".weight")
        weight = dequantize(packed, torch.float32).cpu()
        assert layer["weight"] == pytest.approx(relative_error(stored[layer["name"] + ".weight"], weight))
        assert layer["weight"] > 0 and layer["output"] is None


def test_an_output_error_is_of_that_layer_alone_on_the_references_input(models):
    found = report(models["plain"], models["nf4"], layer_outputs=True)
    errors = {layer["name"]: layer["output"] for layer in found["layers"]}
    seen = []
    layer = comfy.utils.get_attr(models["plain"].model.diffusion_model, NAME)
    hook = layer.register_forward_hook(lambda module, args, output: seen.append((args[0].clone(), output.clone())))
    sampled(models["plain"])
    hook.remove()
    other = comfy.utils.get_attr(models["nf4"].model.diffusion_model, NAME)
    weight = dequantize(other.weight, torch.float32).to(seen[0][0].device)
    outputs = [torch.nn.functional.linear(x.float(), weight, other.bias.to(x.device).float()) for x, _ in seen]
    expected = relative_error(torch.cat([y.float() for _, y in seen]), torch.cat(outputs))
    assert len(seen) == STEPS
    assert errors[NAME] == pytest.approx(expected, rel=1e-2)
    assert all(0 < error < 0.3 for error in errors.values())


def test_layers_that_are_not_packed_have_no_error(models, flux_file):
    config = QuantConfig("nf4", skip_modules=("single_blocks.*", "img_in"))
    model = load_flux_model(flux_source(open_checkpoint(flux_file), config))
    found = report(models["plain"], model, layer_outputs=True, steps=1)
    for layer in found["layers"]:
        skipped = layer["name"].startswith(("single_blocks", "img_in"))
        assert (layer["weight"] == 0) == (layer["output"] < 1e-5) == skipped, layer["name"]


@pytest.mark.parametrize("make", [loras.peft, loras.full_difference], ids=["plain LoRA", "full difference"])
def test_loras_take_part_in_sampling_and_outputs_but_not_in_weights(models, make):
    without = report(models["plain"], models["nf4"], layer_outputs=True)
    reference, model = (comfy.sd.load_lora_for_models(models[k], None, make(), 1.0, 0.0)[0] for k in ("plain", "nf4"))
    found = report(reference, model, layer_outputs=True)
    assert [layer["weight"] for layer in found["layers"]] == [layer["weight"] for layer in without["layers"]]
    assert found["velocity"] != without["velocity"]
    outputs = [layer["output"] for layer in found["layers"]]
    assert 0 < max(outputs) < 0.3 and outputs != [layer["output"] for layer in without["layers"]]
    assert "weights are compared without them" in found["text"]


def test_a_lora_on_one_side_of_one_model_is_the_only_difference(models):
    model = comfy.sd.load_lora_for_models(models["nf4"], None, loras.peft(), 1.0, 0.0)[0]
    found = report(models["nf4"], model, layer_outputs=True)
    assert found["velocity"] > 0.01 and found["drift"] > 0.001
    assert {(layer["weight"], layer["output"]) for layer in found["layers"]} == {(0.0, None)}
    assert "one model with different LoRAs" in found["text"]


def test_batches_guidance_and_masks_are_sampled_as_the_host_does(models):
    mask = torch.zeros(1, 8, 8)
    mask[..., 4:] = 1
    start = torch.randn(3, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    given = {"samples": start, "noise_mask": mask}
    found = report(models["plain"], models["nf4"], negative=conditioning(9), cfg=3.0, latent_image=given)
    finals = [sampled(models[k], 3.0, conditioning(9), given)[2] for k in ("plain", "nf4")]
    assert found["drift"] == pytest.approx(relative_error(*finals), rel=1e-3)
    assert "latent 3×16×8×8" in found["text"]
    assert found["steps"] != report(models["plain"], models["nf4"], latent_image=latent(3))["steps"]


def test_a_latent_of_other_channels_that_is_empty_is_made_to_fit(models):
    found = report(models["plain"], models["nf4"], latent_image={"samples": torch.zeros(1, 4, 8, 8)})
    assert found["steps"] == report(models["plain"], models["nf4"])["steps"]


def test_both_models_are_as_before(models):
    before = [predict(models[kind]) for kind in ("plain", "nf4")]
    options = [copy.deepcopy(models[kind].model_options) for kind in ("plain", "nf4")]
    report(models["plain"], models["nf4"], layer_outputs=True)
    for kind, prediction, option in zip(("plain", "nf4"), before, options, strict=True):
        assert torch.equal(predict(models[kind]), prediction)
        assert models[kind].model_options == option and not models[kind].additional_models
        assert not any(module._forward_hooks for module in models[kind].model.modules())


@pytest.fixture
def progress():
    """What the node's bar shows: (done, total) of each change."""
    seen = []
    comfy.utils.set_progress_bar_global_hook(lambda done, total, preview, **_: seen.append((done, total)))
    yield seen
    comfy.utils.set_progress_bar_global_hook(None)


def test_the_bar_goes_evenly_to_its_end(models, progress):
    found = report(models["plain"], models["nf4"])
    total = 3 * STEPS + len(found["layers"])
    # newer hosts show only some of the changes
    assert progress[0] == (1, total) and progress[-1] == (total, total)
    assert progress == sorted(set(progress))


@pytest.mark.parametrize("when", ["sampled", "predictions_along", "room_to_compare"])
def test_cancel_ends_it_and_leaves_no_hooks(models, monkeypatch, when):
    real = getattr(quality, when)

    def cancelled(*args):
        comfy.model_management.interrupt_current_processing(True)
        return real(*args)

    monkeypatch.setattr(quality, when, cancelled)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        report(models["plain"], models["nf4"], layer_outputs=True)
    assert not any(module._forward_hooks for module in models["plain"].model.modules())


def test_a_model_that_yields_no_numbers_is_told(models, flux_file):
    broken = load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig("none")))
    broken.model.diffusion_model.img_in.weight[0, 0] = math.nan
    found = report(models["plain"], broken, layer_outputs=True)
    assert found["velocity"] is None and found["weight"] is None and "nan %" in found["text"]
    assert max(found["layers"], key=lambda layer: layer["weight"] is None)["name"] == "img_in"


def test_what_cannot_be_used_is_told(models):
    with pytest.raises(ConfigError, match="positive is empty"):
        report(models["plain"], models["nf4"], positive=[])
    with pytest.raises(ConfigError, match="cfg is 2, which needs a negative prompt"):
        report(models["plain"], models["nf4"], cfg=2.0)
    with pytest.raises(ConfigError, match="scheduler is 'none'"):
        report(models["plain"], models["nf4"], scheduler="none")
    with pytest.raises(ConfigError, match="kl_optimal has no noise levels for 1 steps. Set more steps"):
        report(models["plain"], models["nf4"], scheduler="kl_optimal", steps=1)


# other models of the host


@pytest.fixture(scope="module")
def sd3():
    """A function that gives the host's own MODEL of a small SD3, in a dtype."""
    torch.manual_seed(0)
    with torch.inference_mode():
        linear = {"target": "torch.nn.Linear", "params": {"in_features": 128, "out_features": 128}}
        model = comfy.ldm.modules.diffusionmodules.mmdit.MMDiT(
            in_channels=16, depth=2, adm_in_channels=64, context_embedder_config=linear, pos_embed_max_size=16,
            num_patches=256, device="cpu", dtype=torch.float32, operations=comfy.ops.manual_cast,
        )  # fmt: skip
        tensors = {n: torch.randn_like(t) * 0.5 / max(t.shape[-1], 16) ** 0.5 for n, t in model.state_dict().items()}

    def load(dtype: torch.dtype):
        with torch.inference_mode():
            copies = {n: t.to(dtype if t.ndim == 2 else t.dtype) for n, t in tensors.items()}
            return comfy.sd.load_diffusion_model_state_dict(copies, model_options={"dtype": dtype})

    return load


def test_other_models_of_the_host_are_compared(sd3):
    plain, rounded = sd3(torch.float32), sd3(torch.float8_e4m3fn)
    found = report(plain, rounded, layer_outputs=True)
    assert 0.001 < found["velocity"] < 1 and found["drift"] > 0
    assert len(found["layers"]) > 20
    for layer in found["layers"]:
        assert 0.01 < layer["weight"] < 0.05, layer["name"]
    assert {layer["output"] is None for layer in found["layers"]} == {False}
    assert set(errors_of(report(plain, plain, layer_outputs=True))) == {0.0}


def test_they_are_compared_with_what_quantize_model_makes_of_them(sd3):
    plain = sd3(torch.float32)
    (packed,) = QuantFluxQuantize.execute(model=plain, config=QuantConfig("nf4")).args
    found = report(plain, packed, layer_outputs=True)
    assert 0.01 < found["velocity"] < 1
    assert sum(0.05 < layer["weight"] < 0.15 for layer in found["layers"]) > 20


def test_layers_without_a_partner_are_told(models, sd3):
    flux, other = OwnWeights(models["plain"]), OwnWeights(sd3(torch.float32))
    assert common(flux, other) == []
    assert _differences(flux, other, []) == ["No weights compared: no layer of the two has the same name and shape."]


def test_a_model_of_fewer_layers_is_compared_where_it_has_them(models, tmp_path):
    shallow = small_models.random_flux(num_single_layers=1).float()
    small_models.save_native_flux(shallow, tmp_path / "shallow.safetensors")
    model = load_flux_model(flux_source(open_checkpoint(tmp_path / "shallow.safetensors"), QuantConfig("nf4")))
    found = report(models["plain"], model, layer_outputs=True, steps=1)
    names = {layer["name"] for layer in found["layers"]}
    assert "single_blocks.0.linear1" in names and NAME not in names
    assert "3 layers of the reference are not in the model with the same name and shape." in found["text"]


def test_models_of_another_kind_are_refused(models, sd3):
    with pytest.raises(ConfigError, match="the reference is FLUX 16 2 and the model FLOW 16 2"):
        report(models["plain"], sd3(torch.float32))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_that_lies_in_the_main_memory_is_compared_to_the_same_numbers(models):
    first = report(models["plain"], models["nf4"], layer_outputs=True)
    state = comfy.model_management.vram_state
    comfy.model_management.unload_all_models()
    comfy.model_management.vram_state = comfy.model_management.VRAMState.NO_VRAM
    try:
        assert report(models["plain"], models["nf4"], layer_outputs=True) == first
    finally:
        comfy.model_management.vram_state = state
        comfy.model_management.unload_all_models()
