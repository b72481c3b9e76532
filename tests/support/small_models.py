"""Small models of random weights, made by the libraries that people make them with."""

from __future__ import annotations

import diffusers
import torch
import transformers
from native_names import native_state_dict
from safetensors.torch import save_file

FLUX_SIZES = {
    "patch_size": 1,
    "in_channels": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 4,
    "joint_attention_dim": 128,
    "pooled_projection_dim": 64,
    "guidance_embeds": True,
    "axes_dims_rope": (8, 28, 28),
}
T5_SIZES = {
    "vocab_size": 128,
    "d_model": 128,
    "d_kv": 64,
    "d_ff": 256,
    "num_heads": 2,
    "num_layers": 2,
    "feed_forward_proj": "gated-gelu",
}


def random_flux(**changes) -> diffusers.FluxTransformer2DModel:
    """A bfloat16 FLUX of diffusers, about 3 million parameters."""
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(**(FLUX_SIZES | changes)).to(torch.bfloat16).eval()


def save_native_flux(model: diffusers.FluxTransformer2DModel, path, prefix: str = "") -> None:
    """``model`` as a single file under native names."""
    native = native_state_dict(model.state_dict())
    save_file({prefix + name: tensor.contiguous() for name, tensor in native.items()}, path)


def random_t5(**changes) -> transformers.T5EncoderModel:
    """A bfloat16 T5 v1.1 encoder of transformers."""
    torch.manual_seed(0)
    return transformers.T5EncoderModel(transformers.T5Config(**(T5_SIZES | changes))).to(torch.bfloat16).eval()


def save_t5(model: transformers.T5EncoderModel, path) -> None:
    """``model`` as one file under transformers' names."""
    tensors = {n: t for n, t in model.state_dict().items() if n != "encoder.embed_tokens.weight"}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def random_clip_l() -> transformers.CLIPTextModel:
    """A float16 CLIP text encoder of transformers."""
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        hidden_size=64, num_attention_heads=1, num_hidden_layers=2, intermediate_size=128
    )
    return transformers.CLIPTextModel(config).to(torch.float16).eval()


def save_clip_l(model: transformers.CLIPTextModel, path) -> None:
    """``model`` as one file under CLIP-L's names, whichever way transformers' version writes them."""
    tensors = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in model.state_dict().items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
