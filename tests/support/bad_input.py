"""Wrong files and wrong settings, and what the message to each has to say."""

import pickle

import torch
from safetensors.torch import load_file, save
from tiny_workflow import MODELS

(FLUX,) = MODELS["diffusion_models"]
T5, CLIP_L = MODELS["text_encoders"]
(VAE,) = MODELS["vae"]
PICKLE = pickle.dumps({"double_blocks.0.img_attn.qkv.weight": [0.0] * 8})

UMT5S = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight"
BYT5S = {"shared.weight": torch.zeros(384, 128)}
CHROMAS = {"distilled_guidance_layer.in_proj.weight": torch.zeros(1)}
NVFP4S = {"img_in.weight": torch.zeros(256, 32, dtype=torch.uint8), "img_in.weight_scale_2": torch.ones(())}


def with_tensors(path, tensors):
    """A function that gives a file's bytes with some tensors added or replaced."""
    return lambda: save(load_file(path) | tensors)


# file name → (its bytes, what the message says of the cause, what it says of the way out)
NO_TRANSFORMERS = {
    "a_vae.safetensors": (VAE.read_bytes, r"VAE", r"VAELoader"),
    "a_t5.safetensors": (T5.read_bytes, r"T5", r"Load Quantized T5"),
    "a_clip_l.safetensors": (CLIP_L.read_bytes, r"CLIP-L", r"Load Quantized T5"),
    "a_chroma.safetensors": (with_tensors(FLUX, CHROMAS), r"a Chroma transformer", r"UNETLoader"),
    "an_nvfp4.safetensors": (with_tensors(FLUX, NVFP4S), r"img_in\.weight as nvfp4", r"16-bit or fp8 file"),
    "cut_short.safetensors": (lambda: FLUX.read_bytes()[: FLUX.stat().st_size // 2], r"safetensors", r"download"),
    "cut_in_header.safetensors": (lambda: FLUX.read_bytes()[:100], r"safetensors", r"download"),
    "empty.safetensors": (bytes, r"empty", r"download"),
    "noise.safetensors": (lambda: bytes(range(256)) * 64, r"not a safetensors file", r"safetensors file"),
    "a_pickle.pt": (lambda: PICKLE, r"pickle", r"\.safetensors"),
    "a_pickle.ckpt": (lambda: PICKLE, r"pickle", r"\.safetensors"),
    "a_pickle.bin": (lambda: PICKLE, r"pickle", r"\.safetensors"),
    "a_pickle.safetensors": (lambda: PICKLE, r"pickle", r"\.safetensors"),
}
NO_T5 = {
    "a_flux.safetensors": (FLUX.read_bytes, r"FLUX", r"Load Quantized Transformer"),
    "a_umt5.safetensors": (with_tensors(T5, {UMT5S: torch.zeros(32, 2)}), r"UMT5", r"CLIPLoader"),
    "a_byt5.safetensors": (with_tensors(T5, BYT5S), r"vocabulary of 384", r"T5-XXL"),
    "t5_cut_short.safetensors": (lambda: T5.read_bytes()[: T5.stat().st_size // 2], r"safetensors", r"download"),
    "t5_pickle.bin": (lambda: PICKLE, r"pickle", r"\.safetensors"),
}
BAD_SETTINGS = {
    "precision": "int5",
    "compute_dtype": "int8",
    "blocksize": 48,
    "int8_threshold": -1.0,
}
