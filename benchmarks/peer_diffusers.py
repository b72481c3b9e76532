"""diffusers' recipe: ``FluxTransformer2DModel`` with a bitsandbytes config, its prediction given to the host's sampler.

    python benchmarks/peer_diffusers.py flux.safetensors nf4

writes a folder flux-diffusers-nf4 beside the file, quantized, that ``from_pretrained`` reads (7 GB; int8: 12 GB; bf16:
24 GB), since diffusers does not quantize single files. ``compare.py`` does it by itself.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil

import torch

KINDS = {
    "bf16": {"precision": "none"},
    "nf4": {"precision": "nf4"},
    "int8": {"precision": "int8", "int8_threshold": 6.0},
}


def beside(checkpoint: str, kind: str) -> str:
    return f"{os.path.splitext(checkpoint)[0]}-diffusers-{kind}"


def write(checkpoint: str, kind: str):
    from quantflux.quant_core.checkpoint import open_checkpoint
    from quantflux.quant_core.config import QuantConfig
    from quantflux.quant_core.export import provenance_of, save_diffusers_folder
    from quantflux.quant_core.quantize import load
    from quantflux.quant_core.source import flux_source

    shutil.rmtree(beside(checkpoint, kind), ignore_errors=True)
    source = flux_source(open_checkpoint(checkpoint), QuantConfig(**KINDS[kind]))
    tensors = load(source, "cuda" if torch.cuda.is_available() else "cpu", "cpu")
    save_diffusers_folder(beside(checkpoint, kind), tensors, provenance_of(source))


class HostInputs(torch.nn.Module):
    """diffusers' transformer behind the inputs and the output of the host's."""

    dtype = torch.bfloat16

    def __init__(self, transformer: torch.nn.Module):
        super().__init__()
        self.transformer = transformer

    def forward(self, x, timestep, context, y, guidance, **kwargs):
        batch, channels, height, width = x.shape
        rows, columns = height // 2, width // 2
        tokens = x.view(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        places = torch.zeros(rows, columns, 3, device=x.device)
        places[..., 1] = torch.arange(rows, device=x.device)[:, None]
        places[..., 2] = torch.arange(columns, device=x.device)
        predicted = self.transformer(
            hidden_states=tokens,
            encoder_hidden_states=context,
            pooled_projections=y,
            timestep=timestep,
            img_ids=places.flatten(0, 1),
            txt_ids=torch.zeros(context.shape[1], 3, device=x.device),
            guidance=guidance,
            return_dict=False,
        )[0]
        patches = predicted.view(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return patches.reshape(x.shape)


def diffusers(kind: str, compiled: bool = False):
    """A loader for ``variants.py``. ``compiled``: by diffusers' own ``compile_repeated_blocks``."""

    def load(checkpoint: str):
        import comfy.model_base
        import comfy.model_management as memory
        import comfy.supported_models
        from comfy.model_patcher import ModelPatcher
        from diffusers import FluxTransformer2DModel

        transformer = FluxTransformer2DModel.from_pretrained(beside(checkpoint, kind), torch_dtype=torch.bfloat16)
        if compiled:
            # or LLM.int8() breaks each block into many graphs
            torch._dynamo.config.capture_dynamic_output_shape_ops = True
            transformer.compile_repeated_blocks()
        sizes = {"image_model": "flux", "guidance_embed": True, "in_channels": 16, "out_channels": 16}
        config = comfy.supported_models.Flux(sizes | {"disable_unet_model_creation": True})
        config.set_inference_dtype(torch.bfloat16, None)
        model = comfy.model_base.Flux(config)
        model.diffusion_model = HostInputs(transformer)
        return ModelPatcher(model, memory.get_torch_device(), memory.unet_offload_device())

    return load


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a 16-bit FLUX file; random_flux.py makes one")
    parser.add_argument("kind", choices=KINDS)
    arguments = parser.parse_args()
    write(arguments.checkpoint, arguments.kind)
    print(json.dumps({"path": beside(arguments.checkpoint, arguments.kind)}))


if __name__ == "__main__":
    main()
