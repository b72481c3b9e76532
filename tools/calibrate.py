"""Measures what each layer of a FLUX costs at each precision, for `auto:<GiB>` in skip_modules.

    python tools/calibrate.py
    python tools/calibrate.py --transformer flux1-dev.safetensors --t5 t5xxl_fp16.safetensors \\
        --clip-l clip_l.safetensors --prompts prompts.txt --size 512

Writes `<transformer>.costs.csv`, which Load Quantized Transformer finds beside the model. Without arguments: the small
FLUX. Products are in float32, so that rounding to 16 bit does not hide what the precision costs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from comfy_host import HostError
from shape_scenes import prompts
from tiny_in_process import CLIP_L, T5, TRANSFORMER, conditionings, empty_latent, use_host
from tqdm import tqdm

PROMPT_SEED = 7  # other captions than those that prompt_accuracy.py draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transformer", type=Path, default=TRANSFORMER, help="16-bit file or folder")
    parser.add_argument("--t5", type=Path, default=T5)
    parser.add_argument("--clip-l", type=Path, default=CLIP_L)
    parser.add_argument("--prompts", type=Path, help="a text file, one prompt a line; by default the small FLUX's own")
    parser.add_argument("--count", type=int, default=4, help="prompts to use, at most")
    parser.add_argument("--steps", type=int, default=2, help="points of the way from noise to picture")
    parser.add_argument("--size", type=int, default=128, help="pixels a side")
    parser.add_argument("--guidance", type=float, default=3.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="nf4", choices=["nf4", "fp4", "int8"], help="the lowest one")
    parser.add_argument("--blocksize", type=int, default=64)
    parser.add_argument("--int8-threshold", type=float, default=6.0)
    parser.add_argument("--out", type=Path, help="by default beside the transformer")
    arguments = parser.parse_args()
    try:
        use_host()
    except HostError as error:
        sys.exit(str(error))
    print(calibrate_file(arguments))


def calibrate_file(arguments: argparse.Namespace) -> Path:
    """Write the costs, and return where they are."""
    import torch
    from quantflux.nodes.host.calibration import calibrate
    from quantflux.nodes.host.flux_model import load_flux_model
    from quantflux.quant_core.checkpoint import open_checkpoint
    from quantflux.quant_core.config import QuantConfig
    from quantflux.quant_core.mixed import write_costs
    from quantflux.quant_core.mixed.choose import costs_path
    from quantflux.quant_core.source import flux_source

    if arguments.prompts is None:
        texts = [caption for caption, *_ in prompts(arguments.count, PROMPT_SEED)]
    else:
        lines = arguments.prompts.read_text(encoding="utf-8").splitlines()
        texts = [line for line in lines if line.strip()][: arguments.count]
    config = QuantConfig(
        arguments.precision, torch.float32, blocksize=arguments.blocksize, int8_threshold=arguments.int8_threshold
    )
    checkpoint = open_checkpoint(arguments.transformer, "transformer")
    with torch.inference_mode(), tqdm(disable=None) as bar:

        def progress(done: int, total: int):
            bar.total = total
            bar.update(done - bar.n)

        positives = conditionings(texts, arguments.guidance, arguments.t5, arguments.clip_l)
        model = load_flux_model(flux_source(checkpoint, QuantConfig("none", torch.float32)))
        latent = empty_latent(arguments.size)
        costs = calibrate(model, positives, latent, arguments.steps, arguments.seed, config, progress)
    path = arguments.out or Path(costs_path(checkpoint))
    write_costs(
        path,
        costs,
        f"{checkpoint.name}: squared relative error of the velocity when one layer alone is packed.\n"
        f"{len(texts)} prompts, {arguments.steps} steps, {arguments.size} pixels, guidance {arguments.guidance:g}, "
        f"seed {arguments.seed}; torch {torch.__version__}.",
    )
    return path


if __name__ == "__main__":
    main()
