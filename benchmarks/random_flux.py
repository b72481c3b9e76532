"""Writes a FLUX.1-dev-shaped checkpoint of random bfloat16 weights: 11.90 B parameters, 23.8 GB."""

import argparse
import dataclasses
import os
from collections.abc import Iterator

import torch
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.export import Provenance, save_single_file
from quantflux.quant_core.flux.config import FluxConfig
from quantflux.quant_core.layouts import quantize
from safetensors.torch import save_file

FLUX_DEV = FluxConfig(
    in_channels=64,
    out_channels=64,
    hidden_size=3072,
    num_heads=24,
    mlp_size=12288,
    context_in_dim=4096,
    vec_in_dim=768,
    depth=19,
    depth_single_blocks=38,
    guidance_embed=True,
)
ONE_BLOCK_EACH = dataclasses.replace(FLUX_DEV, depth=1, depth_single_blocks=1)


def random_tensors(config: FluxConfig, device: str, seed: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights of standard deviation 0.02 (modulation 0.005, so that activations stay in range), zero biases."""
    generator = torch.Generator(device).manual_seed(seed)
    for name, shape in config.tensor_shapes().items():
        if name.endswith("scale"):
            tensor = torch.ones(shape, device=device)
        elif name.endswith("bias"):
            tensor = torch.zeros(shape, device=device)
        else:
            deviation = 0.005 if "mod" in name else 0.02
            tensor = torch.randn(shape, generator=generator, device=device) * deviation
        yield name, tensor.to(torch.bfloat16)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path")
    parser.add_argument("--small", action="store_true", help="one block of each kind, for a trial on a CPU")
    parser.add_argument("--precision", default="none", help="nf4, fp4 or int8: packed, in a file of that size")
    arguments = parser.parse_args()
    os.makedirs(os.path.dirname(os.path.abspath(arguments.path)), exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, config = ONE_BLOCK_EACH if arguments.small else FLUX_DEV, QuantConfig(arguments.precision)

    def packed(tensor: torch.Tensor) -> torch.Tensor:
        return quantize(tensor, config) if tensor.ndim == 2 else tensor

    tensors = {name: packed(tensor).cpu() for name, tensor in random_tensors(model, device)}
    if arguments.precision == "none":
        save_file(tensors, arguments.path)
    else:
        save_single_file(arguments.path, tensors, Provenance("random weights", "", config, model, {}))


if __name__ == "__main__":
    main()
