"""Writes what a whole run needs beside the transformer, of random weights in the real sizes: T5-XXL in bfloat16
(9.5 GB), CLIP-L in float16 and FLUX's VAE in float32.

    COMFYUI_PATH=/some/ComfyUI python benchmarks/random_parts.py FOLDER
"""

import argparse
import json
import os
import sys

import torch
import transformers
from measure import start_host
from safetensors.torch import save_file

T5_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_heads": 64,
    "num_layers": 24,
    "feed_forward_proj": "gated-gelu",
}
SMALL_T5 = T5_XXL | {"d_ff": 256, "num_heads": 2, "num_layers": 1}
CLIP_L = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 12, "intermediate_size": 3072}
VAE = {
    "double_z": True,
    "z_channels": 16,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 128,
    "ch_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_resolutions": [],
    "dropout": 0.0,
}


def random_vae() -> torch.nn.Module:
    """FLUX's autoencoder, built by the host."""
    from comfy.ldm.models.autoencoder import AutoencodingEngine

    part = "comfy.ldm.modules.diffusionmodules.model."
    return AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": f"{part}Encoder", "params": VAE},
        decoder_config={"target": f"{part}Decoder", "params": VAE},
    )


def randomize(module: torch.nn.Module):
    """The host's layers are left as the memory was: give them values that keep a picture in range."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            parameter.data = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
        else:
            parameter.data.zero_()
    for child in module.modules():
        if isinstance(child, torch.nn.GroupNorm):
            child.weight.data.fill_(1.0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--small", action="store_true", help="a small T5, to try this without a GPU")
    arguments = parser.parse_args()
    start_host()
    os.makedirs(arguments.folder, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    with torch.device(device):
        config = transformers.T5Config(**(SMALL_T5 if arguments.small else T5_XXL))
        torch.set_default_dtype(torch.bfloat16)
        t5 = transformers.T5EncoderModel(config)
        torch.set_default_dtype(torch.float32)
    tensors = {name: t.cpu().contiguous() for name, t in t5.state_dict().items() if "embed_tokens" not in name}
    save_file(tensors, os.path.join(arguments.folder, "t5.safetensors"))
    clip = transformers.CLIPTextModel(transformers.CLIPTextConfig(**CLIP_L)).half()
    tensors = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in clip.state_dict().items()}
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, os.path.join(arguments.folder, "clip_l.safetensors")
    )
    vae = random_vae()
    randomize(vae)
    save_file(vae.state_dict(), os.path.join(arguments.folder, "vae.safetensors"))
    sizes = {
        name: os.path.getsize(os.path.join(arguments.folder, name)) for name in sorted(os.listdir(arguments.folder))
    }
    print(json.dumps(sizes), file=sys.stderr)


if __name__ == "__main__":
    main()
