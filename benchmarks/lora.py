"""What LoRAs cost on a packed model: time per step with none, one and three of rank 32, and the time of a swap.

COMFYUI_PATH=/some/ComfyUI python benchmarks/lora.py flux.safetensors --out benchmarks/results/lora.jsonl
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

from measure import GIB, peak_gib, sample, start_host, synchronize
from points import Point
from records import Records, markdown

RANK = 32


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--precision", default="nf4", help="empty: the file is packed already")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", required=True)
    return parser.parse_args()


def random_lora(shapes: dict[str, tuple[int, int]], seed: int) -> dict:
    """Rank 32 on every linear layer of the blocks, under kohya's names."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (rows, columns) in shapes.items():
        if "blocks" in module:
            key = f"lora_unet_{module.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"] = (torch.randn(RANK, columns, generator=generator) * 0.02).bfloat16()
            tensors[f"{key}.lora_up.weight"] = (torch.randn(rows, RANK, generator=generator) * 0.02).bfloat16()
            tensors[f"{key}.alpha"] = torch.tensor(float(RANK))
    return tensors


def table(records: list[dict]) -> str:
    lines = []
    for variant in dict.fromkeys(record["loras"] for record in records):
        rows = [record for record in records if record["loras"] == variant]
        lines.append(
            [
                variant,
                f"{statistics.median(r['step_s'] for r in rows):.4f}",
                f"{statistics.median(r['ratio'] for r in rows):.3f}",
                f"{max(r['swap_s'] for r in rows):.2f}",
                f"{rows[0]['model_gib']:.2f}",
            ]
        )
    return markdown(["LoRAs", "s/step", "ratio", "swap s", "model GiB"], lines)


def main():
    arguments = parse()
    start_host()
    import comfy.model_management
    import comfy.sd
    import folder_paths
    import torch
    from quantflux.nodes.load_transformer import QuantFluxLoadTransformer
    from quantflux.quant_core.checkpoint import open_checkpoint
    from quantflux.quant_core.config import QuantConfig
    from quantflux.quant_core.source import flux_source

    folder, name = os.path.split(arguments.checkpoint)
    folder_paths.add_model_folder_path("diffusion_models", folder)
    # a packed file keeps its own
    config = QuantConfig(arguments.precision) if arguments.precision else None
    shapes = flux_source(open_checkpoint(arguments.checkpoint), config).model.linear_shapes()
    loras = [random_lora(shapes, seed) for seed in range(4)]
    records = Records(arguments.out)
    with torch.inference_mode():
        base = QuantFluxLoadTransformer.execute(name, config)[0]

        def patched(*which: int):
            model = base
            for i in which:
                model = comfy.sd.load_lora_for_models(model, None, loras[i], 0.8, 0.0)[0]
            return model

        variants = {"none": base, "one": patched(0), "three": patched(0, 1, 2), "another": patched(3)}
        result, _ = sample(base, arguments.steps, Point(arguments.size))
        for round_number in range(arguments.rounds):
            for variant, model in variants.items():
                start = time.perf_counter()
                comfy.model_management.load_models_gpu([model])
                synchronize()
                swap = time.perf_counter() - start
                latents, seconds = sample(model, arguments.steps, Point(arguments.size))
                record = {
                    "loras": variant,
                    "round": round_number,
                    "precision": arguments.precision,
                    "swap_s": swap,
                    "step_s": statistics.median(seconds[2:] or seconds),
                    "model_gib": model.model_size() / GIB,
                    "peak_gib": peak_gib(),
                    "changes_latents": not torch.equal(latents, result),
                }
                baseline = next((r for r in records if r["round"] == round_number), record)
                record["ratio"] = record["step_s"] / baseline["step_s"]
                records.add(record)
    records.finish(table)


if __name__ == "__main__":
    main()
