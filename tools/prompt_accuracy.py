"""Measures how often the small FLUX draws the shape and the colour of its prompt, in a real ComfyUI.

python tools/prompt_accuracy.py --count 200 none nf4 fp4 int8
"""

from __future__ import annotations

import argparse
import sys

from comfy_client import ComfyClient
from comfy_host import ComfyHost, HostError
from read_picture import read_picture
from shape_scenes import prompts
from tiny_workflow import MODELS, text_to_image
from tqdm import tqdm

SEED = 2024


def prompt_accuracy(client: ComfyClient, count: int, **config: object) -> tuple[int, list[str]]:
    """Draw `count` prompts, each with a seed of its own, and read the pictures.

    `config` overrides inputs of the Quantization Config node. Returns how many pictures are right in shape and
    colour, and what was drawn instead in the others.
    """
    wrong = []
    for index, (caption, shape, colour) in enumerate(tqdm(prompts(count, SEED), disable=None)):
        (picture,) = client.run(text_to_image(caption, seed=index, **config)).images
        found = read_picture(picture)
        if found != (shape, colour):
            wrong.append(f"{caption} -> {' '.join(reversed(found))}")
    return count - len(wrong), wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("precisions", nargs="+")
    parser.add_argument("--count", type=int, default=200)
    arguments = parser.parse_args()
    try:
        with ComfyHost(models=MODELS) as host:
            for precision in arguments.precisions:
                right, wrong = prompt_accuracy(host.client, arguments.count, precision=precision)
                print(f"{precision}: {right} of {arguments.count} right", *wrong, sep="\n  ", flush=True)
    except HostError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
