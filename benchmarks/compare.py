"""Measures variants side by side: each run in a fresh process, rounds alternating, ratios to stock bf16.

COMFYUI_PATH=/some/ComfyUI python benchmarks/compare.py flux.safetensors --out benchmarks/results/today.jsonl
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
BASELINE = "stock-bf16"
PACKAGES = ("torch", "bitsandbytes", "comfy-kitchen", "triton")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a 16-bit FLUX file; random_flux.py makes one")
    parser.add_argument("--variants", default="stock-bf16,bare-nf4,ours-nf4,ours-nf4-dq,ours-int8-t0,ours-int8-t6")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--kernels", action="store_true", help="sum up the time of the kernels, too")
    parser.add_argument("--out", required=True, help="JSON lines, one measurement each; a Markdown table goes beside")
    arguments = parser.parse_args()
    if BASELINE not in arguments.variants.split(","):
        parser.error(f"--variants must name {BASELINE}, which the ratios are taken to")
    return arguments


def environment() -> dict:
    """Machine, versions, commit and date of every record."""
    import torch

    def version(package: str) -> str | None:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return None

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True)
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    with open(os.path.join(os.environ["COMFYUI_PATH"], "comfyui_version.py")) as file:
        host = file.read().split('"')[-2]
    return {
        "machine": machine,
        "versions": {"comfyui": host, "python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "commit": os.environ.get("QUANTFLUX_COMMIT") or commit.stdout.strip() or None,
        "date": datetime.date.today().isoformat(),
    }


def measure(variant: str, arguments: argparse.Namespace) -> dict:
    command = [
        sys.executable, os.path.join(HERE, "measure.py"), variant, arguments.checkpoint,
        "--steps", str(arguments.steps), "--size", str(arguments.size),
        "--reference", f"{arguments.out}.reference.pt",
    ]  # fmt: skip
    if variant.startswith("ours"):
        command.append("--reload")
    if arguments.kernels:
        command.append("--kernels")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr[-4000:], file=sys.stderr)
        return {"variant": variant, "error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(records: list[dict]) -> str:
    """Medians over the rounds, as Markdown."""
    lines = [
        "| variant | s/step | ratio | min-max s | peak GiB | load s | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for variant in dict.fromkeys(record["variant"] for record in records):
        rows = [record for record in records if record["variant"] == variant and "error" not in record]
        if not rows:
            lines.append(f"| {variant} | failed | | | | | |")
            continue

        def median(key: str, rows=rows) -> float:
            return statistics.median(row[key] for row in rows)

        spread = f"{min(row['step_min_s'] for row in rows):.4f}-{max(row['step_max_s'] for row in rows):.4f}"
        lines.append(
            f"| {variant} | {median('step_s'):.4f} | {median('ratio'):.3f} | {spread} | {median('peak_gib'):.2f} "
            f"| {median('load_s'):.1f} | {median('rel_err'):.4f} |"
        )
    return "\n".join(lines)


def main():
    arguments = parse()
    about = environment()
    variants = sorted(arguments.variants.split(","), key=BASELINE.__ne__)  # the baseline first
    records = []
    with open(arguments.out, "w") as out:
        for round_number in range(arguments.rounds):
            for variant in variants:
                record = measure(variant, arguments)
                if variant == BASELINE:
                    if "error" in record:
                        raise SystemExit(f"{BASELINE} failed, so there is nothing to compare with: {record['error']}")
                    baseline = record["step_s"]
                if "step_s" in record:
                    record["ratio"] = record["step_s"] / baseline
                records.append(record | {"round": round_number} | about)
                print(json.dumps(records[-1]), file=out, flush=True)
                print(json.dumps(record), flush=True)
    with contextlib.suppress(FileNotFoundError):  # every run failed
        os.remove(f"{arguments.out}.reference.pt")
    with open(os.path.splitext(arguments.out)[0] + ".md", "w") as out:
        out.write(table(records) + "\n")
    print(table(records))


if __name__ == "__main__":
    main()
