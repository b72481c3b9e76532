"""What Quantize Model hands on as it is, and what it refuses."""

import functools
import logging
import threading
import weakref
from types import SimpleNamespace

import comfy.model_patcher
import comfy.patcher_extension
import comfy.sd
import folder_paths
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from flux_predictions import relative_error
from other_dits import MAKERS, denoised
from quantflux.nodes.dequantize import QuantFluxDequantize
from quantflux.nodes.host.flux_model import load_flux_model
from quantflux.nodes.quantize import QuantFluxQuantize
from quantflux.nodes.save import SINGLE_FILE, QuantFluxSave
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.errors import ConfigError
from quantflux.quant_core.source import flux_source
from quantize_node import linears_of, packed_names, quantize_model


def test_precision_none_and_a_packed_model_that_agrees_are_handed_on(flux_file):
    stock = MAKERS["SD3"]()
    assert quantize_model(stock, QuantConfig("none")) is stock
    packed = quantize_model(stock, QuantConfig("nf4", skip_modules=("proj_out",)))
    for config in (None, QuantConfig("nf4"), QuantConfig("nf4", skip_modules=("proj_out",))):
        assert quantize_model(packed, config) is packed
    assert QuantFluxQuantize.execute(packed).ui["text"][0].startswith("handed on as it is")
    loaded = load_flux_model(flux_source(open_checkpoint(flux_file), QuantConfig("int8", int8_threshold=2.0)))
    assert quantize_model(loaded, QuantConfig("int8", int8_threshold=2.0)) is loaded


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (QuantConfig("int8"), "as nf4, but the config asks for int8 threshold 6"),
        (QuantConfig("nf4", double_quant=True), "as nf4, but the config asks for nf4 double quant"),
        (QuantConfig("nf4", blocksize=128), "as nf4, but the config asks for nf4 blocksize 128"),
        (QuantConfig("none"), "as nf4, but the config asks for 16-bit"),
        (QuantConfig("nf4", skip_modules=("proj_out",)), "with final_layer.linear, but the config skips that module"),
        (QuantConfig("nf4", torch.float16), "with compute_dtype float32, but the config asks for float16"),
    ],
    ids=str,
)
def test_a_packed_model_and_another_config_are_told_apart(config, words):
    packed = quantize_model(MAKERS["SD3"]())
    with pytest.raises(ConfigError, match=f"{words}.*put a Dequantize node"):
        quantize_model(packed, config)


def test_quantizing_again_behind_dequantize_works():
    stock = MAKERS["SD3"]()
    plain = QuantFluxDequantize.execute("auto", model=quantize_model(stock)).args[0]
    again = quantize_model(plain, QuantConfig("int8", torch.float32))
    assert packed_names(again) == linears_of(stock)
    assert relative_error(denoised(again), denoised(plain)) < 0.05


class OtherProjects(torch.nn.Parameter):
    """A tensor as other projects' packs have them: GGUF's, bitsandbytes' own."""


@pytest.mark.parametrize("kind", ["class", "dtype"])
def test_weights_that_another_project_packed_are_refused_by_name(kind):
    stock = MAKERS["SD3"]()
    layer = stock.model.diffusion_model.joint_blocks[1].x_block.mlp.fc2
    data = torch.zeros(layer.weight.shape, dtype=torch.uint8)
    made = OtherProjects if kind == "class" else torch.nn.Parameter
    layer.weight = made(data, requires_grad=False)
    named = "OtherProjects" if kind == "class" else "torch.uint8"
    with pytest.raises(ConfigError, match=rf"joint_blocks.1.x_block.mlp.fc2.weight is a {named}.*16-bit or fp8 file"):
        quantize_model(stock)


def test_nothing_to_pack_is_told():
    with pytest.raises(ConfigError, match="no linear layer to quantize that skip_modules does not name"):
        quantize_model(MAKERS["SD3"](), QuantConfig("nf4", skip_modules=("*",)))
    device = torch.device("cpu")
    with pytest.raises(ConfigError, match="no transformer or U-Net"):
        quantize_model(comfy.model_patcher.ModelPatcher(torch.nn.Linear(64, 64), device, device))


def test_a_budget_is_for_files():
    with pytest.raises(ConfigError, match="use Load Quantized Transformer"):
        quantize_model(MAKERS["SD3"](), QuantConfig("nf4", budget_gib=1.0))


def compiled(model):
    set_torch_compile_wrapper(model, "eager", keys=["diffusion_model.final_layer"])


def wrapped(model):
    layer = model.model.diffusion_model.final_layer.linear
    model.add_object_patch("diffusion_model.final_layer.linear", torch.nn.Sequential(layer))


def with_a_bound_method(model):
    model.add_object_patch("diffusion_model.final_layer.forward", model.model.diffusion_model.final_layer.forward)


def with_a_closure(model):
    block = model.model.diffusion_model.joint_blocks[0]
    model.set_model_unet_function_wrapper(lambda apply, options: block(apply, options))


def injected(model):
    block = model.model.diffusion_model.joint_blocks[0]
    injection = comfy.patcher_extension.PatcherInjection(inject=lambda _: block, eject=lambda _: None)
    model.set_injections("one", [injection])


class Slotted:
    __slots__ = ("module", "not_assigned")

    def __init__(self, module):
        self.module = module


class Manager:
    """As the host's bypass keeps the layers whose forward it puts another in the place of."""

    def __init__(self, layer):
        self.hooks = [Slotted(layer)]

    def injection(self):
        def inject(patcher):
            return self.hooks

        return comfy.patcher_extension.PatcherInjection(inject=inject, eject=lambda _: None)


def injected_by_an_object(model):
    model.set_injections("one", [Manager(model.model.diffusion_model.final_layer.linear).injection()])


def in_an_option_of_an_object(model):
    held = Slotted({"block": Slotted(model.model.diffusion_model.joint_blocks[0])})
    model.set_model_attn1_replace(functools.partial(print, held), "input", 1)


def hooked(model):
    model.model.diffusion_model.final_layer.linear.register_forward_hook(lambda *args: None)


HOLDING = [
    compiled, wrapped, with_a_bound_method, with_a_closure, injected, injected_by_an_object, in_an_option_of_an_object,
    hooked,
]  # fmt: skip


@pytest.mark.parametrize("hold", HOLDING)
def test_what_holds_the_layers_is_refused(hold):
    stock = MAKERS["SD3"]().clone()
    hold(stock)
    with pytest.raises(ConfigError, match="bypass mode does so too. Put Quantize Model right behind the loader"):
        quantize_model(stock)


@pytest.mark.skipif(not hasattr(comfy.sd, "load_bypass_lora_for_models"), reason="this host has no LoRA bypass")
def test_a_lora_bypass_is_refused_and_works_behind_quantize_model():
    stock = MAKERS["SD3"]()
    expected = denoised(quantize_model(stock))
    linear = stock.model.diffusion_model.final_layer.linear
    generator = torch.Generator().manual_seed(1)
    lora = {
        "diffusion_model.final_layer.linear.lora_A.weight": torch.randn(4, linear.in_features, generator=generator),
        "diffusion_model.final_layer.linear.lora_B.weight": torch.randn(linear.out_features, 4, generator=generator),
    }

    def bypassing(model):
        return comfy.sd.load_bypass_lora_for_models(model, None, lora, 1.0, 0.0)[0]

    with pytest.raises(ConfigError, match="holds its layers.*bypass mode"):
        quantize_model(bypassing(stock))
    behind = denoised(bypassing(quantize_model(stock)))
    assert relative_error(behind, expected) > 0.1
    assert torch.equal(denoised(quantize_model(stock)), expected)


class OfAnotherNode:
    """Keeps what nodes keep of a model without using its layers: a patcher of it, its sampling, and itself."""

    def __init__(self, model):
        self.model, self.sampling = model, model.get_model_object("model_sampling")
        self.to_sigma = self.sampling.percent_to_sigma
        self.itself, self.known = self, weakref.ref(model.model.diffusion_model)
        self.log, self.lock = logging.getLogger(), threading.Lock()
        self.weights = {"to_k": torch.nn.Linear(64, 64)}

    def __call__(self, *args, **kwargs):
        raise NotImplementedError


def test_objects_that_hold_no_layer_are_not_refused():
    stock = MAKERS["SD3"]().clone()
    expected = denoised(quantize_model(stock))
    # after sampling, which leaves things of its own on a model
    denoised(stock)
    held = OfAnotherNode(stock)
    around = SimpleNamespace(held=held)
    stock.add_callback(comfy.patcher_extension.CallbacksMP.ON_CLEANUP, held)
    stock.add_object_patch("model_sampling", held.sampling)
    stock.set_model_attn1_patch(lambda *args: around)
    stock.add_wrapper(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, held.__call__)
    assert torch.equal(denoised(quantize_model(stock)), expected)


def test_hook_loras_are_refused():
    stock = MAKERS["SD3"]().clone()
    stock.hook_patches = {object(): {}}
    with pytest.raises(ConfigError, match="hook LoRAs.*Use LoraLoader"):
        quantize_model(stock)


def test_saving_another_model_than_flux_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    with pytest.raises(ConfigError, match="model is a SD3, and of packed transformers only FLUX.1 can be saved"):
        QuantFluxSave.execute("sd3", SINGLE_FILE, model=quantize_model(MAKERS["SD3"]()))
    assert not list(tmp_path.rglob("*.*"))
