"""Measures how far pictures of the small FLUX are from those at 16 bit: PSNR and SSIM, in a real ComfyUI.

    python tools/picture_quality.py --count 20 nf4 fp4 int8

Only the transformer is quantized, so that all pictures have the same prompts' encodings, noise and autoencoder.
"""

from __future__ import annotations

import argparse
import sys

import numpy
import torch
from comfy_client import ComfyClient
from comfy_host import ComfyHost, HostError
from PIL import Image
from shape_scenes import prompts
from tiny_workflow import MODELS, text_to_image
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from tqdm import tqdm

SEED = 2024
MEASURES = {"PSNR, dB": peak_signal_noise_ratio, "SSIM": structural_similarity_index_measure}


def draw(client: ComfyClient, count: int, precision: str) -> list[Image.Image]:
    """Draw `count` prompts, each with a seed of its own, with the transformer at this precision."""
    pictures = []
    for index, (caption, _, _) in enumerate(tqdm(prompts(count, SEED), desc=precision, disable=None)):
        graph = text_to_image(caption, seed=index, precision=precision)
        graph["text_config"] = {**graph["config"], "inputs": graph["config"]["inputs"] | {"precision": "none"}}
        graph["text_encoders"]["inputs"]["config"] = ["text_config", 0]
        pictures += client.run(graph).images
    return pictures


def tensor(picture: Image.Image) -> torch.Tensor:
    """The picture as (1, 3, height, width), from 0 to 1."""
    return torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)[None] / 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("precisions", nargs="+")
    parser.add_argument("--count", type=int, default=20)
    arguments = parser.parse_args()
    try:
        with ComfyHost(models=MODELS) as host:
            references = draw(host.client, arguments.count, "none")
            for precision in arguments.precisions:
                pairs = list(zip(draw(host.client, arguments.count, precision), references, strict=True))
                for name, measure in MEASURES.items():
                    found = torch.stack([measure(*map(tensor, pair), data_range=1.0) for pair in pairs])
                    print(f"{precision} {name}: median {found.median():.3f}, {found.min():.3f} to {found.max():.3f}")
    except HostError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
