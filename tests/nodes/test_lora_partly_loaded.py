"""LoRAs and other patches on a packed model of which a part is on the device, and orders in which they come and go."""

import itertools

import comfy.model_management
import loras
import pytest
import torch
from comfy import lora
from flux_predictions import predict, relative_error
from host_models import with_loras
from quantflux.nodes.dequantize import QuantFluxDequantize
from quantflux.nodes.host import patcher
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import is_packed
from quantflux.quant_core.source import flux_source

NF4 = QuantConfig("nf4")
LAYER = "diffusion_model.double_blocks.0.img_mlp.2"
UNEQUAL = 5e-3  # of predictions that a patch lies between


@pytest.fixture(autouse=True)
def streams(monkeypatch):
    """As many as the host has on NVIDIA cards: it keeps room free for each."""
    monkeypatch.setattr(comfy.model_management, "NUM_STREAMS", 2)


@pytest.fixture
def packed(flux_file):
    def load(config=NF4):
        return load_flux_model(flux_source(open_checkpoint(flux_file), config))

    return load


def load_within(patcher, budget):
    """As the host loads a model, or a clone of the one that is loaded, when it may take so many bytes."""
    patcher.partially_load(patcher.load_device, budget - patcher.loaded_size())


def unload(patcher):
    patcher.detach()
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("skipped", [(), ("single_blocks.0",), ("linear2", "img_mlp.0", "txt_attn.qkv")])
def test_patches_are_swapped_whatever_part_is_loaded(packed, skipped):
    base = packed(QuantConfig("nf4", skip_modules=skipped))
    difference = {name: 10 * tensor for name, tensor in loras.full_difference().items()}
    clones = {
        "base": base,
        "half": with_loras(base, loras.peft(), strength=0.5),
        "whole": with_loras(base, loras.peft()),
        "difference": with_loras(base, difference),
    }
    expected = {}
    for name, clone in clones.items():
        expected[name] = predict(clone)
        unload(clone)
    assert relative_error(expected["base"], expected["whole"]) > 2 * UNEQUAL
    orders = [("base", "whole"), ("half", "whole"), ("base", "difference"), ("difference", "half"), ("whole", "base")]
    for before, after in orders:
        for share in (0.2, 0.4, 0.6, 0.75, 0.9):
            budget = int(share * base.model_size())
            load_within(clones[before], budget)
            load_within(clones[after], budget)
            found = relative_error(predict(clones[after], as_it_lies=True), expected[after])
            assert found < UNEQUAL, f"{before}, then {after}, within {share:.0%}"
            assert 0 <= clones[after].loaded_size() <= budget
            unload(clones[after])


def test_a_lora_leaves_as_much_of_the_model_on_the_device_as_fits(packed):
    base = packed()
    more = with_loras(base, loras.peft())
    budget = int(0.6 * base.model_size())
    load_within(base, budget)
    without = base.loaded_size()
    unload(base)
    load_within(more, budget)
    assert 0.8 * without < more.loaded_size() <= budget


def test_a_control_lora_is_added_once_however_often_its_layer_leaves(packed):
    base = packed()
    wide = with_loras(base, loras.control(), loras.peft())
    comfy.model_management.load_models_gpu([wide])
    layer = wide.model.diffusion_model.img_in
    resident, size = layer.weight.clone(), wide.loaded_size()
    assert not is_packed(resident)
    for share in (0.1, 0.5, 1.0):
        wide.partially_unload(wide.offload_device, int(share * size))
        assert torch.equal(layer.weight.cpu(), resident.cpu())
        assert wide.loaded_size() >= 0
        wide.partially_load(wide.load_device, 2 * size)
        assert torch.equal(layer.weight, resident)
        assert wide.loaded_size() == size == comfy.model_management.module_size(wide.model)
    comfy.model_management.load_models_gpu([base])
    assert is_packed(layer.weight)
    assert base.loaded_size() == comfy.model_management.module_size(base.model)


@pytest.mark.parametrize("first", ["with", "without"])
def test_weight_wrappers_stay_on_the_clone_that_they_were_put_on(packed, first):
    base = packed()
    wrapped = base.clone()
    wrapped.add_weight_wrapper(f"{LAYER}.weight", lambda weight: weight * 0)
    expected = {"without": predict(base)}
    unload(base)
    expected["with"] = predict(wrapped)
    unload(wrapped)
    assert relative_error(expected["with"], expected["without"]) > UNEQUAL
    clones = {"with": wrapped, "without": base}
    for name in (first, "without" if first == "with" else "with", first):
        assert torch.equal(predict(clones[name]), expected[name]), name


@pytest.mark.parametrize("between", ["set", "dora"])
def test_a_lora_used_twice_is_not_moved_past_what_does_more_than_add(packed, between):
    base = packed()
    plain = QuantFluxDequantize.execute("float32", model=base).args[0]
    m = loras.Maker(8)
    twice = {f"{LAYER}.lora_A.weight": m(4, 1024), f"{LAYER}.lora_B.weight": m(256, 4)}
    if between == "set":
        other = {f"{LAYER}.set_weight": m(256, 1024)}
    else:
        other = {f"{LAYER}.lora_A.weight": m(4, 1024), f"{LAYER}.lora_B.weight": m(256, 4)}
        other[f"{LAYER}.dora_scale"] = m(256, 1).abs() + 0.5
    ours, expected = (predict(with_loras(model, twice, other, twice)) for model in (base, plain))
    assert relative_error(ours, expected) < UNEQUAL
    assert relative_error(expected, predict(with_loras(plain, other))) > 2 * UNEQUAL


def failing_at(call, function):
    """``function``, whose so many-th call finds no memory."""
    calls = itertools.count(1)

    def failing(*args, **kwargs):
        if next(calls) == call:
            raise comfy.model_management.OOM_EXCEPTION("out of memory")
        return function(*args, **kwargs)

    return failing


@pytest.mark.parametrize(
    "share, module, name, call",
    [(None, patcher, "merge", 1), (None, patcher, "merge", 8), (None, lora, "calculate_weight", 1)]
    + [(0.6, patcher, "merge", 8)],
)
def test_a_swap_that_finds_no_memory_leaves_no_patches(packed, monkeypatch, share, module, name, call):
    base = packed(QuantConfig("nf4", skip_modules=("linear2",)))
    one, other = (with_loras(base, loras.kohya(seed), loras.peft(seed), loras.full_difference()) for seed in (1, 2))
    expected = {name: predict(clone) for name, clone in (("base", base), ("one", one), ("other", other))}
    assert relative_error(expected["other"], expected["one"]) > 2 * UNEQUAL
    unload(other)
    if share is None:
        comfy.model_management.load_models_gpu([one])
    else:
        load_within(one, int(share * base.model_size()))
    monkeypatch.setattr(module, name, failing_at(call, getattr(module, name)))
    with pytest.raises(comfy.model_management.OOM_EXCEPTION):
        if share is None:
            predict(other)
        else:
            load_within(other, int(share * base.model_size()))
    monkeypatch.undo()
    assert not base.backup and base.loaded_size() == 0
    assert base.model.current_weight_patches_uuid is None and base.model.low_rank_uuid is None
    for layer in base.model.modules():
        assert not getattr(layer, "weight_function", []) and getattr(layer, "low_rank", None) is None
    comfy.model_management.unload_all_models()
    for name, clone in (("one", one), ("other", other), ("base", base)):
        assert torch.equal(predict(clone), expected[name]), name
