"""Wrong files and wrong settings, and what the message to each has to say."""

import pickle

from tiny_workflow import MODELS

(FLUX,) = MODELS["diffusion_models"]
T5, CLIP_L = MODELS["text_encoders"]
(VAE,) = MODELS["vae"]
PICKLE = pickle.dumps({"double_blocks.0.img_attn.qkv.weight": [0.0] * 8})

# file name → (its bytes, what the message says of the cause, what it says of the way out)
NO_TRANSFORMERS = {
    "a_vae.safetensors": (VAE.read_bytes, r"VAE", r"VAELoader"),
    "a_t5.safetensors": (T5.read_bytes, r"T5", r"Load Quantized T5"),
    "a_clip_l.safetensors": (CLIP_L.read_bytes, r"CLIP-L", r"Load Quantized T5"),
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
    "t5_cut_short.safetensors": (lambda: T5.read_bytes()[: T5.stat().st_size // 2], r"safetensors", r"download"),
    "t5_pickle.bin": (lambda: PICKLE, r"pickle", r"\.safetensors"),
}
BAD_SETTINGS = {
    "precision": "int5",
    "compute_dtype": "int8",
    "blocksize": 48,
    "int8_threshold": -1.0,
}
