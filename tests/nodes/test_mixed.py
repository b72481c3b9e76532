"""A precision for each layer in the host: calibration, loading within a budget, and what it buys."""

import comfy.model_management
import comfy.utils
import pytest
import torch
from flux_predictions import predict, relative_error
from mixed_costs import GIB, linears, nbytes_of, write_model_costs
from quantflux.nodes.config import QuantFluxConfig
from quantflux.nodes.host.calibration import calibrate, calls_along, velocity_on
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.host.folders import TRANSFORMERS, chosen_fingerprint
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import ConfigError
from quantflux.quant_core.layouts import dequantize, is_packed, quantize
from quantflux.quant_core.memory import planned_nbytes
from quantflux.quant_core.mixed import candidates, write_costs
from quantflux.quant_core.source import flux_source

NF4 = QuantConfig("nf4", torch.float32)


@pytest.fixture
def model_file(flux_file, tmp_path):
    path = tmp_path / "flux.safetensors"
    path.symlink_to(flux_file)
    return path


def loaded(path, config):
    return load_flux_model(flux_source(open_checkpoint(path), config))


def within(path, nbytes, **fields) -> QuantConfig:
    return QuantConfig(**({"precision": "nf4", "compute_dtype": torch.float32} | fields), budget_gib=nbytes / GIB)


def conditioning(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return [
        [
            torch.randn(1, 16, 128, generator=generator),
            {"pooled_output": torch.randn(1, 64, generator=generator), "guidance": 3.5},
        ]
    ]


def test_the_node_takes_the_budget_from_skip_modules():
    inputs = {"precision": "nf4", "compute_dtype": "auto", "double_quant": False, "blocksize": 64}
    output = QuantFluxConfig.execute(**inputs, int8_threshold=6.0, skip_modules="img_in\nauto:7.5")
    assert output.args[0] == QuantConfig("nf4", skip_modules=("img_in",), budget_gib=7.5)
    with pytest.raises(ConfigError, match="auto:<GiB>"):
        QuantFluxConfig.execute(**inputs, int8_threshold=6.0, skip_modules="auto:some")


def test_predictions_are_those_of_each_layers_own_recipe(model_file):
    source = flux_source(open_checkpoint(model_file), within(model_file, 1.3 * nbytes_of(model_file)))
    assert len(source.precisions) > 1 and not source.uses_int8
    ours = predict(load_flux_model(source))
    reference = loaded(model_file, QuantConfig("none", torch.float32))
    for name, recipe in source.packed.items():
        key = f"diffusion_model.{name}"
        weight = comfy.utils.get_attr(reference.model, key)
        comfy.utils.set_attr_param(reference.model, key, dequantize(quantize(weight, recipe), weight.dtype))
    assert relative_error(ours, predict(reference)) < 1e-3


def test_a_mix_of_4_and_8_bit_is_counted_offloaded_and_unloaded_to_the_bit(model_file):
    write_model_costs(model_file, {module: 1.0 + i for i, module in enumerate(linears(model_file))})
    config = within(model_file, 1.3 * nbytes_of(model_file), int8_threshold=2.5)
    source = flux_source(open_checkpoint(model_file), config)
    assert source.uses_int8 and {"nf4", "int8"} <= {recipe.precision for recipe in source.packed.values()}
    patcher = load_flux_model(source)
    outside = patcher.model_size() - comfy.model_management.module_size(patcher.model.diffusion_model)
    assert patcher.model_size() - outside == planned_nbytes(source)
    before = predict(patcher)
    assert before.isfinite().all()
    patcher.partially_unload(patcher.offload_device, patcher.model_size() // 2)
    assert torch.equal(predict(patcher), before)
    comfy.model_management.unload_all_models()
    assert torch.equal(predict(patcher), before)


def test_calibrated_costs_are_what_packing_does_and_the_plan_is_nearer_than_uniform_nf4_at_the_same_bytes(model_file):
    model = loaded(model_file, QuantConfig("none", torch.float32))
    latent = {"samples": torch.zeros(1, 16, 8, 8)}
    prompts = [conditioning(1)]
    before = predict(model)
    progress = []
    costs = calibrate(model, prompts, latent, 1, 0, NF4, lambda *call: progress.append(call))
    assert torch.equal(predict(model), before)
    modules, recipes = linears(model_file), candidates(NF4)
    assert {(c.layer, c.recipe) for c in costs} == {(m, r) for m in modules for r in recipes}
    assert len(costs) == len(modules) * len(recipes)
    evaluations = len(modules) * (len(recipes) - 1)
    assert progress[-1] == (evaluations, evaluations)

    def velocity(patcher):
        # other prompts and noise than those of the calibration
        calls = calls_along(model, [conditioning(seed) for seed in (3, 4)], latent, 2, 5)
        return velocity_on(patcher, calls)()

    exact = velocity(model)
    alone = loaded(model_file, QuantConfig("nf4", torch.float32, skip_modules=tuple(modules[1:])))
    assert [n for n, m in alone.model.diffusion_model.named_modules() if is_packed(getattr(m, "weight", None))] == [
        modules[0]
    ]
    cost = next(c for c in costs if c.layer == modules[0] and c.recipe.describe() == "nf4")
    calls = calls_along(model, prompts, latent, 1, 0)
    measured = relative_error(velocity_on(alone, calls)(), velocity_on(model, calls)()) ** 2
    assert cost.squared_error == pytest.approx(measured, rel=1e-3)

    write_costs(f"{model_file}.costs.csv", costs)
    uniform = velocity(loaded(model_file, NF4))
    source = flux_source(open_checkpoint(model_file), within(model_file, nbytes_of(model_file)))
    assert source.costs == "flux.safetensors.costs.csv"
    assert planned_nbytes(source) <= nbytes_of(model_file)
    assert relative_error(velocity(load_flux_model(source)), exact) < 0.9 * relative_error(uniform, exact)


@pytest.mark.parametrize("precision", ["nf4", "int8"])
def test_only_plain_weights_are_calibrated(model_file, precision):
    model = loaded(model_file, QuantConfig(precision))
    with pytest.raises(ConfigError, match="precision none"):
        calibrate(model, [conditioning(1)], {"samples": torch.zeros(1, 16, 8, 8)}, 1, 0, NF4)


def test_new_costs_make_the_loader_run_again(model_file, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_filename_list", lambda key: [model_file.name] if "diff" in key else [])
    monkeypatch.setattr(folder_paths, "get_full_path", lambda key, name: str(model_file))
    before = chosen_fingerprint(TRANSFORMERS, model_file.name)
    assert chosen_fingerprint(TRANSFORMERS, model_file.name) == before
    write_model_costs(model_file, {"img_in": 1.0})
    assert chosen_fingerprint(TRANSFORMERS, model_file.name) != before
