"""What a plan counts for activations, held to the host's own classes, which run at full size without data."""

import dataclasses

import comfy.ldm.flux.math
import comfy.ldm.flux.model
import comfy.ldm.modules.attention as attention
import comfy.ldm.modules.diffusionmodules.model as vae_model
import comfy.model_detection
import comfy.ops
import comfy.text_encoders.t5
import pytest
import torch
from comfy.ldm.models.autoencoder import AutoencodingEngine
from full_sizes import FLUX_BLOCKS, T5_XXL
from live_bytes import FusedKernels, LiveBytes
from quantflux.nodes.host.flux_model import unet_config
from quantflux.quant_core.plan.activations import TEXT_TOKENS, Tokens, encoder_moment, sampling_moments
from quantflux.quant_core.plan.turns import VAE_CHANNELS, VAE_PARAMETERS, VAE_VALUES_PER_PIXEL


def with_fused_attention(_, *args, **kwargs):
    """Attention as on a GPU: the host puts it together from many operators on other devices."""
    return attention.attention_pytorch(*args, **kwargs)


def peak_of_flux(width, height, batch, dtype) -> int:
    """The most bytes that live while the host's Flux runs once."""
    shapes = FLUX_BLOCKS.tensor_shapes()
    tensors = {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}
    sizes = comfy.model_detection.detect_unet_config(tensors, "") | unet_config(FLUX_BLOCKS)
    model = comfy.ldm.flux.model.Flux(**sizes, dtype=dtype, device="meta", operations=comfy.ops.disable_weight_init)

    def made(*shape):
        return torch.empty(shape, dtype=dtype, device="meta")

    inputs = (
        made(batch, 16, height // 8, width // 8),
        made(batch),
        made(batch, TEXT_TOKENS, FLUX_BLOCKS.context_in_dim),
        made(batch, FLUX_BLOCKS.vec_in_dim),
        made(batch),
    )
    live = LiveBytes()
    live.know(*model.parameters(), *inputs)
    with FusedKernels(), live:
        model(*inputs, transformer_options={"optimized_attention_override": with_fused_attention})
    return live.peak


def formula(width, height, batch, dtype) -> int:
    return max(m.nbytes for m in sampling_moments(FLUX_BLOCKS, Tokens.of(width, height, batch), dtype.itemsize))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [(1024, 1024, 1), (256, 256, 1), (2048, 1024, 1), (1000, 776, 3)], ids=str)
def test_activations_are_those_of_the_hosts_flux(size, dtype):
    found = peak_of_flux(*size, dtype)
    if hasattr(comfy.ldm.flux.math, "_apply_rope") or "kitchen" in comfy.ldm.flux.math.apply_rope.__module__:
        # rotates in one kernel where there is a GPU
        assert found <= 1.01 * formula(*size, dtype)
    else:
        assert formula(*size, dtype) == pytest.approx(found, rel=0.005)


def test_activations_are_those_of_the_hosts_t5(monkeypatch):
    monkeypatch.setattr(
        comfy.text_encoders.t5, "optimized_attention_for_device", lambda *args, **kwargs: attention.attention_pytorch
    )
    # as with FLUX's blocks, the number of layers changes nothing
    sizes = dataclasses.asdict(dataclasses.replace(T5_XXL, num_layers=2))
    sizes |= {"dense_act_fn": "gelu_pytorch_tanh", "is_gated_act": True, "model_type": "t5"}
    model = comfy.text_encoders.t5.T5(sizes, torch.float32, "meta", comfy.ops.disable_weight_init)
    embedded = torch.empty(1, TEXT_TOKENS, T5_XXL.d_model, device="meta")
    live = LiveBytes()
    live.know(*model.parameters())
    with FusedKernels(), live:
        # FLUX's T5 gets no mask
        model(None, None, embeds=embedded.clone(), num_tokens=None)
    assert encoder_moment(T5_XXL).nbytes == pytest.approx(live.peak, rel=0.005)


def test_pixels_take_what_they_take_in_the_hosts_vae(monkeypatch):
    # the attention that the host takes on a GPU
    monkeypatch.setattr(vae_model, "vae_attention", lambda: vae_model.pytorch_attention)
    sizes = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "in_channels": 3}
    sizes |= {"double_z": True, "z_channels": 16, "resolution": 256, "out_ch": 3, "dropout": 0.0}
    part = "comfy.ldm.modules.diffusionmodules.model."
    with torch.device("meta"):
        vae = AutoencodingEngine(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
            encoder_config={"target": f"{part}Encoder", "params": sizes},
            decoder_config={"target": f"{part}Decoder", "params": sizes},
        ).to(torch.bfloat16)
    assert sum(parameter.numel() for parameter in vae.parameters()) == VAE_PARAMETERS
    latent = torch.empty(1, 16, 64, 64, dtype=torch.bfloat16, device="meta")
    live = LiveBytes()
    live.know(*vae.parameters(), latent)
    with FusedKernels(), live:
        vae.decode(latent)
    values = live.peak / 512**2 / 2
    # one block later: two pictures of the channels, and half of one; the copies of its convolution are smaller
    assert values == pytest.approx(2.5 * VAE_CHANNELS, rel=0.02)
    assert values + 1.5 * VAE_CHANNELS < VAE_VALUES_PER_PIXEL
