"""Runs the whole pipeline on a card of which only so much is free: packed T5, 1024×1024 sampling, VAE decode.

    python benchmarks/random_flux.py FOLDER/flux.safetensors
    COMFYUI_PATH=/some/ComfyUI python benchmarks/random_parts.py FOLDER
    COMFYUI_PATH=/some/ComfyUI python benchmarks/low_vram.py FOLDER --out benchmarks/results/low_vram.jsonl

Another process holds the rest of the memory, so that the host sees what is truly free and asking for more fails. Each
run is a fresh process; its latents are compared bit for bit with those of the run without a limit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager

from measure import GIB, peak_gib, sample, start_host, synchronize
from points import Point
from records import Records, RunFailed, in_fresh_process, markdown, only

CAPS = (0, 16, 12, 10, 8, 6, 4)  # GiB; 0 is the whole card


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--precision", default="nf4")
    parser.add_argument("--caps", type=lambda text: [float(cap) for cap in text.split(",")], default=CAPS)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--out", help="JSON lines, one run each; a Markdown table goes beside")
    parser.add_argument(
        "--flags", type=lambda text: text.split(","), default=[], help="of the host: lowvram,reserve-vram=20"
    )
    parser.add_argument("--hold", type=float, help=argparse.SUPPRESS)
    return parser.parse_args()


def hold(free: float):
    """Leave ``free`` GiB of the card to others until standard input ends."""
    import torch

    torch.zeros(1, device="cuda")
    held = []
    while (surplus := torch.cuda.mem_get_info()[0] - free * GIB) > 2 * 2**20:
        held.append(torch.empty(int(min(surplus, 2 * GIB)) // 2**21 * 2**21, dtype=torch.uint8, device="cuda"))
    print(json.dumps({"free_gib": torch.cuda.mem_get_info()[0] / GIB}), flush=True)
    sys.stdin.read()


@contextmanager
def limited(free: float):
    """Only ``free`` GiB of the card can be had; 0 sets no limit."""
    if not free:
        yield
        return
    command = [sys.executable, os.path.abspath(__file__), "", "--hold", str(free)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        holder.stdout.readline()
        yield
        holder.stdin.close()


def run_once(arguments: argparse.Namespace):
    """The whole pipeline; prints one JSON line."""
    start_host(arguments.flags)
    import comfy.model_management as memory
    import comfy.sd
    import comfy.utils
    import folder_paths
    import torch
    from quantflux.nodes.load_t5 import QuantFluxLoadT5
    from quantflux.nodes.load_transformer import QuantFluxLoadTransformer
    from quantflux.quant_core.checkpoint import open_checkpoint
    from quantflux.quant_core.config import QuantConfig
    from quantflux.quant_core.source import flux_source

    for key in ("diffusion_models", "text_encoders"):
        folder_paths.add_model_folder_path(key, arguments.folder)
    config = QuantConfig(arguments.precision)
    record = {"free_at_start_gib": memory.get_free_memory() / GIB}
    with torch.inference_mode():
        start = time.perf_counter()
        clip = QuantFluxLoadT5.execute("t5.safetensors", "clip_l.safetensors", config)[0]
        encoded = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of a cat, " * 20))
        synchronize()
        record["text_s"] = time.perf_counter() - start
        record["text_peak_gib"] = peak_gib()
        start = time.perf_counter()
        # a file that random_flux.py packed already keeps its own
        packed = flux_source(open_checkpoint(os.path.join(arguments.folder, "flux.safetensors"))).is_packed
        model = QuantFluxLoadTransformer.execute("flux.safetensors", None if packed else config)[0]
        synchronize()
        record["load_s"] = time.perf_counter() - start
        conditioning = [[encoded[0][0], encoded[0][1] | {"guidance": 3.5}]]
        latents, seconds = sample(model, arguments.steps, Point(arguments.size), conditioning)
        record["resident_gib"] = model.loaded_size() / GIB
        record["model_gib"] = model.model_size() / GIB
        vae = comfy.sd.VAE(sd=comfy.utils.load_torch_file(os.path.join(arguments.folder, "vae.safetensors")))
        start = time.perf_counter()
        picture = vae.decode(latents)
        record["decode_s"] = time.perf_counter() - start
    steady = seconds[2:] or seconds
    record |= {
        "step_s": statistics.median(steady),
        "first_step_s": seconds[0],
        "peak_gib": peak_gib(),
        "picture": list(picture.shape),
        "finite": bool(latents.isfinite().all()),
        "latents": hashlib.sha256(latents.float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16],
    }
    print(json.dumps(record), flush=True)


def run(arguments: argparse.Namespace, cap: float) -> dict:
    words = [arguments.folder, "--precision", arguments.precision, "--steps", arguments.steps, "--size", arguments.size]
    if arguments.flags:
        words += ["--flags", ",".join(arguments.flags)]
    with limited(cap):
        try:
            return only(in_fresh_process("low_vram.py", *words))
        except RunFailed as failure:
            return {"error": str(failure)}


def table(records: list[dict]) -> str:
    header = "free GiB", "s/step", "ratio", "peak GiB", "resident GiB", "text s", "load s", "decode s", "latents"

    def row(r: dict) -> list[str]:
        free = str(r["cap_gib"] or "all")
        if "error" in r:
            return [free, f"failed: {r['error'][:80]}"]
        return [
            free,
            f"{r['step_s']:.4f}",
            f"{r['ratio']:.2f}",
            f"{r['peak_gib']:.2f}",
            f"{r['resident_gib']:.2f} of {r['model_gib']:.2f}",
            f"{r['text_s']:.1f}",
            f"{r['load_s']:.1f}",
            f"{r['decode_s']:.1f}",
            "the same" if r["same_latents"] else "differ",
        ]

    return markdown(header, map(row, records))


def main():
    arguments = parse()
    if arguments.hold is not None:
        hold(arguments.hold)
        return
    if arguments.out is None:
        run_once(arguments)
        return
    records = Records(arguments.out)
    for cap in arguments.caps:
        record = {"precision": arguments.precision, "flags": arguments.flags, "cap_gib": cap} | run(arguments, cap)
        if "error" not in record:
            first = next((r for r in records if "error" not in r), record)
            record |= {
                "ratio": record["step_s"] / first["step_s"],
                "same_latents": record["latents"] == first["latents"],
            }
        records.add(record)
    records.finish(table)


if __name__ == "__main__":
    main()
