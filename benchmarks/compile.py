"""What Compile gains and costs at each precision: time of the first step and of the others, compiled and not, and what
is compiled again for a LoRA, another one, another strength, a longer prompt and another size.

COMFYUI_PATH=/some/ComfyUI python benchmarks/compile.py flux.safetensors --out benchmarks/results/compile.jsonl
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator

from lora import random_lora
from measure import peak_gib, sample, start_host, synchronize
from points import TEXT_TOKENS, Point
from records import Records, markdown

PRECISIONS = {
    "none": {"precision": "none"},
    "nf4": {"precision": "nf4"},
    "nf4-dq": {"precision": "nf4", "double_quant": True},
    "fp4": {"precision": "fp4"},
    "int8-t0": {"precision": "int8", "int8_threshold": 0.0},
    "int8-t6": {"precision": "int8", "int8_threshold": 6.0},
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a 16-bit FLUX file; random_flux.py makes one")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--mode", default="default")
    parser.add_argument("--dynamic", default="auto")
    parser.add_argument("--whole", action="store_true", help="the model as one graph")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", required=True)
    return parser.parse_args()


def condition(text_tokens: int):
    import torch

    generator = torch.Generator().manual_seed(2)
    context = torch.randn(1, text_tokens, 4096, generator=generator)
    return [[context, {"pooled_output": torch.randn(1, 768, generator=generator), "guidance": 3.5}]]


def measured(model, arguments: argparse.Namespace, **changes) -> tuple[dict, object]:
    """Figures of one sampling, and its latents."""
    import torch

    point = Point(changes.get("size", arguments.size))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    latents, seconds = sample(model, arguments.steps, point, changes.get("condition"))
    synchronize()
    figures = {
        "first_step_s": seconds[0],
        "step_s": statistics.median(seconds[2:] or seconds),
        "total_s": time.perf_counter() - start,
        "peak_gib": peak_gib(),
    }
    return figures, latents


def cases(precision: str, arguments: argparse.Namespace) -> Iterator[dict]:
    """Each a measurement, in the order in which a user would change one thing after the other."""
    import comfy.sd
    import folder_paths
    from quantflux.nodes.compile import QuantFluxCompile
    from quantflux.nodes.load_transformer import QuantFluxLoadTransformer
    from quantflux.quant_core.checkpoint import open_checkpoint
    from quantflux.quant_core.config import QuantConfig
    from quantflux.quant_core.source import flux_source

    folder, name = os.path.split(arguments.checkpoint)
    folder_paths.add_model_folder_path("diffusion_models", folder)
    config = QuantConfig(**PRECISIONS[precision])
    shapes = flux_source(open_checkpoint(arguments.checkpoint), config).model.linear_shapes()
    loras = [random_lora(shapes, seed) for seed in range(2)]
    base = QuantFluxLoadTransformer.execute(name, config)[0]
    start = time.perf_counter()
    output = QuantFluxCompile.execute(
        base, arguments.backend, arguments.mode, not arguments.whole, False, arguments.dynamic
    )
    node_s = time.perf_counter() - start
    fast, report = output.args[0], output.ui["quantflux"][0]

    def patched(model, which: int, strength: float):
        return comfy.sd.load_lora_for_models(model, None, loras[which], strength, 0.0)[0]

    known = {"graphs": 0, "graph_breaks": 0}

    def case(what: str, model, round_number: int = 0, **changes) -> tuple[dict, object]:
        figures, latents = measured(model, arguments, **changes)
        now = {"graphs": len(report["graphs"]), "graph_breaks": sum(report["graph_breaks"].values())}
        new = report["graphs"][known["graphs"] :]
        record = {
            "precision": precision, "case": what, "round": round_number, "node_s": node_s
        } | figures  # fmt: skip
        record |= {f"new_{key}": now[key] - known[key] for key in now}
        record |= {"compile_s": sum(g["seconds"] for g in new), "because": [g["because"] for g in new]}
        known.update(now)
        return record, latents

    case("warm-up", base)
    for round_number in range(arguments.rounds):
        record, expected = case("eager", base, round_number)
        yield record
        compiled, latents = case("compiled", fast, round_number)
        error = ((latents - expected).norm() / expected.norm()).item()
        yield compiled | {"ratio": compiled["step_s"] / record["step_s"], "rel_err": error}
    yield case("lora", patched(fast, 0, 0.8))[0]
    yield case("lora strength", patched(fast, 0, 0.3))[0]
    yield case("lora swap", patched(fast, 1, 0.8))[0]
    yield case("lora eager", patched(base, 0, 0.8))[0]
    yield case("lora off", fast)[0]
    yield case("long prompt", fast, condition=condition(2 * TEXT_TOKENS - 47))[0]
    for size in (arguments.size * 3 // 4, arguments.size // 2, arguments.size):
        yield case(f"{size}x{size}", fast, size=size)[0]


def table(records: list[dict]) -> str:
    """As Markdown, in the order measured."""
    header = (
        "precision",
        "case",
        "round",
        "first step s",
        "s/step",
        "ratio",
        "graphs",
        "breaks",
        "compiling s",
        "peak GiB",
    )

    def row(r: dict) -> list[str]:
        if "error" in r:
            return [r["precision"], "failed"]
        return [
            r["precision"],
            r["case"],
            str(r["round"]),
            f"{r['first_step_s']:.2f}",
            f"{r['step_s']:.4f}",
            f"{r['ratio']:.3f}" if "ratio" in r else "",
            str(r["new_graphs"]),
            str(r["new_graph_breaks"]),
            f"{r['compile_s']:.1f}",
            f"{r['peak_gib']:.2f}",
        ]

    return markdown(header, map(row, records))


def main():
    arguments = parse()
    start_host()
    import comfy.model_management
    import torch

    about = {key: vars(arguments)[key] for key in ("backend", "mode", "dynamic", "whole", "size")}
    records = Records(arguments.out, **about)
    with torch.inference_mode():
        for precision in arguments.precisions.split(","):
            torch._dynamo.reset()
            try:
                for record in cases(precision, arguments):
                    records.add(record)
            except Exception as error:
                # the other precisions are measured all the same
                records.add({"precision": precision, "error": f"{type(error).__name__}: {error}"})
            comfy.model_management.unload_all_models()
    records.finish(table)


if __name__ == "__main__":
    main()
