"""Holds VRAM Plan to what sampling really takes: predicted and measured peaks, for precisions, sizes and batches.

    python benchmarks/random_flux.py FOLDER/flux.safetensors
    COMFYUI_PATH=/some/ComfyUI python benchmarks/plan.py FOLDER/flux.safetensors --out benchmarks/results/plan.jsonl

Each case is a fresh process: the plan is made first, then the model is loaded by the node and samples two steps, and
``torch.cuda.max_memory_allocated`` of those is the measured peak. Without a GPU the cases run, and nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import os

from measure import GIB, peak_gib, start_host
from points import TEXT_TOKENS
from records import Records, RunFailed, in_fresh_process, markdown, only

CONFIGS = {
    "none": {"precision": "none"},
    "nf4": {"precision": "nf4"},
    "nf4-dq": {"precision": "nf4", "double_quant": True},
    "fp4": {"precision": "fp4"},
    "int8-t0": {"precision": "int8", "int8_threshold": 0.0},
    "int8-t6": {"precision": "int8", "int8_threshold": 6.0},
}
SIZES = "1024x1024,512x512,1536x1024,2048x2048,1024x1024x4"
TOLERANCE = 0.05


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a 16-bit FLUX file; random_flux.py makes one")
    parser.add_argument("--configs", default=",".join(CONFIGS))
    parser.add_argument("--sizes", default=SIZES, help="WIDTHxHEIGHT or WIDTHxHEIGHTxBATCH, separated by commas")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", help="JSON lines, one case each; a Markdown table goes beside")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


def sizes(text: str) -> tuple[int, int, int]:
    """(width, height, batch) of one size."""
    width, height, batch = (*map(int, text.split("x")), 1)[:3]
    return width, height, batch


def run_once(arguments: argparse.Namespace):
    """Plan, load and sample one case; prints one JSON line."""
    name, size = arguments.case.split(":")
    width, height, batch = sizes(size)
    start_host()
    import folder_paths
    import torch
    from quantflux.nodes.host.card import activation_dtype, card
    from quantflux.nodes.load_transformer import QuantFluxLoadTransformer
    from quantflux.quant_core.checkpoint import open_checkpoint
    from quantflux.quant_core.config import QuantConfig
    from quantflux.quant_core.plan.activations import Tokens
    from quantflux.quant_core.plan.turns import sampling
    from quantflux.quant_core.source import flux_source

    config = QuantConfig(**CONFIGS[name])
    source = flux_source(open_checkpoint(arguments.checkpoint), config)
    planned = sampling(source, Tokens.of(width, height, batch), activation_dtype(source), card(width, height, batch))
    folder, file = os.path.split(arguments.checkpoint)
    folder_paths.add_model_folder_path("diffusion_models", folder)
    with torch.inference_mode():
        model = QuantFluxLoadTransformer.execute(file, config)[0]
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        finite = bool(sampled(model, width, height, batch, arguments.steps, source.model).isfinite().all())
    record = {
        "config": name,
        "width": width,
        "height": height,
        "batch": batch,
        "predicted_gib": planned.peak / GIB,
        "weights_gib": planned.weights.nbytes / GIB,
        "rounding_gib": planned.rounding / GIB,
        "scratch_gib": planned.scratch / GIB,
        "activations_gib": planned.activations / GIB,
        "moment": planned.moment,
        "predicted_resident_gib": planned.resident / GIB,
        "resident_gib": model.loaded_size() / GIB,
        "model_gib": model.model_size() / GIB,
        "finite": finite,
    }
    if torch.cuda.is_available():
        record["measured_gib"] = peak_gib()
        record["error"] = record["predicted_gib"] / record["measured_gib"] - 1
        record["within_5_percent"] = abs(record["error"]) <= TOLERANCE
    print(json.dumps(record), flush=True)


def sampled(model, width: int, height: int, batch: int, steps: int, sizes):
    """Latents of ``batch`` pictures for a random prompt of 256 tokens, through the host's sampler."""
    import comfy.sample
    import torch

    generator = torch.Generator().manual_seed(0)
    latent = torch.zeros(batch, 16, height // 8, width // 8)
    noise = torch.randn(latent.shape, generator=generator)
    context = torch.randn(1, TEXT_TOKENS, sizes.context_in_dim, generator=generator)
    pooled = torch.randn(1, sizes.vec_in_dim, generator=generator)
    condition = [[context, {"pooled_output": pooled, "guidance": 3.5}]]
    return comfy.sample.sample(
        model, noise, steps, 1.0, "euler", "simple", condition, condition, latent, disable_pbar=True, seed=0
    )


def run(arguments: argparse.Namespace, case: str) -> dict:
    try:
        return only(in_fresh_process("plan.py", arguments.checkpoint, "--case", case, "--steps", arguments.steps))
    except RunFailed as failure:
        return {"case": case, "failed": str(failure)}


def table(records: list[dict]) -> str:
    header = "config", "size", "batch", "predicted GiB", "measured GiB", "error", "most at"

    def row(r: dict) -> list[str]:
        if "failed" in r:
            return [r["case"], f"failed: {r['failed'][:80]}"]
        return [
            r["config"],
            f"{r['width']}×{r['height']}",
            str(r["batch"]),
            f"{r['predicted_gib']:.2f}",
            *([f"{r['measured_gib']:.2f}", f"{r['error']:+.1%}"] if "measured_gib" in r else "--"),
            r["moment"],
        ]

    return markdown(header, map(row, records))


def main():
    arguments = parse()
    if arguments.case:
        run_once(arguments)
        return
    records = Records(arguments.out)
    for name in arguments.configs.split(","):
        for size in arguments.sizes.split(","):
            records.add(run(arguments, f"{name}:{size}"))
    records.finish(table)


if __name__ == "__main__":
    main()
