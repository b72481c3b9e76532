"""What lies on the model stays on it; what another clone has laid on the shared weights is not packed."""

import comfy.model_management
import comfy.patcher_extension
import pytest
import torch
from other_dits import MAKERS, denoised
from quantflux.nodes.host.patcher import PackedModelPatcher
from quantize_node import linears_of, packed_names, quantize_model


@pytest.mark.parametrize("attached", [True, False], ids=["attached", "taken off again"])
def test_object_patches_of_another_clone_are_not_packed(attached):
    stock = MAKERS["SD3"]()
    transformer = stock.model.diffusion_model
    everything, prediction = linears_of(stock), denoised(quantize_model(stock))
    other = stock.clone()
    other.add_object_patch("diffusion_model.final_layer.linear", torch.nn.Sequential(torch.nn.Linear(128, 64)))
    other.add_object_patch("diffusion_model.x_embedder.forward", transformer.final_layer.forward)
    comfy.model_management.load_models_gpu([other])
    assert "forward" in vars(transformer.x_embedder)
    if not attached:
        # the host leaves the method of the class on the module
        comfy.model_management.unload_all_models()
    packed = quantize_model(stock)
    assert packed_names(packed) == everything
    assert torch.equal(denoised(packed), prediction)


def test_options_object_patches_and_wrappers_stay():
    stock = MAKERS["SD3"]().clone()
    calls = []
    kind = comfy.patcher_extension.WrappersMP.APPLY_MODEL

    def wrapper(executor, *args, **kwargs):
        calls.append(executor)
        return executor(*args, **kwargs)

    stock.add_wrapper(kind, wrapper)
    stock.set_model_attn1_patch(calls.append)
    stock.add_object_patch("latent_format", "another")
    packed = quantize_model(stock)
    assert packed.get_wrappers(kind, None) == [wrapper]
    assert packed.model_options["transformer_options"]["patches"]["attn1_patch"] == [calls.append]
    assert packed.get_model_object("latent_format") == "another"
    assert type(packed.clone()) is PackedModelPatcher
