"""Measures how long a FLUX takes to load: quantized from 16 bit, and from files and folders that are packed already.

    COMFYUI_PATH=/some/ComfyUI python benchmarks/loading.py flux.safetensors --out benchmarks/results/loading.jsonl

Each load runs in a fresh process, through the node, with the files in the page cache and the GPU awake: the time is
that of the node itself. The packed files are made first, beside the 16-bit file, and removed again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import time

from measure import GIB, peak_gib, start_host, synchronize
from records import Records, RunFailed, in_fresh_process, markdown, only

CONFIGS = {
    "nf4": {"precision": "nf4"},
    "nf4-dq": {"precision": "nf4", "double_quant": True},
    "int8": {"precision": "int8"},
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a 16-bit FLUX file; random_flux.py makes one")
    parser.add_argument("--configs", default="nf4,int8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", help="JSON lines, one load each; a Markdown table goes beside")
    parser.add_argument("--config", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--pack", help=argparse.SUPPRESS)
    return parser.parse_args()


def forms(checkpoint: str, name: str) -> dict[str, str]:
    """Form of the model -> file or folder."""
    folder = os.path.dirname(checkpoint)
    return {
        "16-bit file, quantized while loading": checkpoint,
        "packed file": os.path.join(folder, f"packed_{name}.safetensors"),
        "packed diffusers folder": os.path.join(folder, f"packed_{name}"),
    }


def pack(checkpoint: str, name: str):
    """Write the packed forms; prints the seconds of each."""
    import torch
    from quantflux.quant_core.checkpoint import open_checkpoint
    from quantflux.quant_core.config import QuantConfig
    from quantflux.quant_core.export import provenance_of, save_diffusers_folder, save_single_file
    from quantflux.quant_core.quantize import load
    from quantflux.quant_core.source import flux_source

    source = flux_source(open_checkpoint(checkpoint), QuantConfig(**CONFIGS[name]))
    tensors = load(source, "cuda" if torch.cuda.is_available() else "cpu", "cpu")
    _, file, folder = forms(checkpoint, name).values()
    start = time.perf_counter()
    save_single_file(file, tensors, provenance_of(source))
    middle = time.perf_counter()
    save_diffusers_folder(folder, tensors, provenance_of(source))
    print(json.dumps({"save_file_s": middle - start, "save_folder_s": time.perf_counter() - middle}))


def load_once(path: str, config: dict | None):
    """Load through the node; prints one JSON line."""
    start_host()
    import bitsandbytes  # noqa: F401
    import folder_paths
    import torch
    from quantflux.nodes.load_transformer import QuantFluxLoadTransformer
    from quantflux.quant_core.config import QuantConfig

    folder, name = os.path.split(path)
    folder_paths.add_model_folder_path("diffusion_models", folder)
    if torch.cuda.is_available():
        torch.zeros(1, device="cuda")
    with torch.inference_mode():
        start = time.perf_counter()
        model = QuantFluxLoadTransformer.execute(name, config and QuantConfig(**config))[0]
        synchronize()
        seconds = time.perf_counter() - start
    print(json.dumps({"load_s": seconds, "peak_gib": peak_gib(), "model_gib": model.model_size() / GIB}))


def in_this_program(*arguments: str) -> dict:
    try:
        return only(in_fresh_process("loading.py", *arguments))
    except RunFailed as failure:
        return {"error": str(failure)}


def table(records: list[dict]) -> str:
    lines = []
    for config, form in dict.fromkeys((record["config"], record["form"]) for record in records):
        rows = [r for r in records if (r["config"], r["form"]) == (config, form) and "error" not in r]
        if not rows:
            lines.append([config, form, "failed"])
            continue
        seconds = [row["load_s"] for row in rows]
        lines.append(
            [
                config,
                form,
                f"{statistics.median(seconds):.2f}",
                f"{min(seconds):.2f}-{max(seconds):.2f}",
                f"{max(row['peak_gib'] for row in rows):.2f}",
                f"{rows[0]['model_gib']:.2f}",
            ]
        )
    return markdown(["config", "from", "load s", "min-max s", "peak GiB", "model GiB"], lines)


def main():
    arguments = parse()
    if arguments.pack:
        pack(arguments.checkpoint, arguments.pack)
        return
    if arguments.out is None:
        load_once(arguments.checkpoint, arguments.config)
        return
    records = Records(arguments.out)
    for name in arguments.configs.split(","):
        paths = forms(arguments.checkpoint, name)
        saved = in_this_program(arguments.checkpoint, "--pack", name)
        for round_number in range(arguments.rounds):
            for form, path in paths.items():
                config = CONFIGS[name] if path == arguments.checkpoint else None
                record = {"config": name, "form": form, "round": round_number} | saved
                records.add(record | in_this_program(path, "--config", json.dumps(config)))
        _, file, folder = paths.values()
        with contextlib.suppress(FileNotFoundError):  # packing failed
            os.remove(file)
        shutil.rmtree(folder, ignore_errors=True)
    records.finish(table)


if __name__ == "__main__":
    main()
