"""Measures variants side by side: each run in a fresh process, rounds alternating, ratios to stock bf16.

    COMFYUI_PATH=/some/ComfyUI python benchmarks/compare.py flux.safetensors --out benchmarks/results/today.jsonl

``--sizes``, ``--batches`` and ``--text-tokens`` measure each variant at other points too, with the model loaded once.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence

from chart import draw
from measure import BASELINE
from points import Point, add_options, options
from records import Records, RunFailed, in_fresh_process, markdown, only

DEFAULT = (BASELINE, "bare-nf4", "ours-nf4", "ours-nf4-dq", "ours-int8-t0", "ours-int8-t6")
EAGER = (
    *(BASELINE, "stock-fp8", "stock-fp8fast", "gguf-q8_0", "gguf-q4_0", "bare-nf4", "bare-int8-t0", "bare-int8-t6"),
    *("diffusers-nf4", "diffusers-int8"),
    *("ours-nf4", "ours-nf4-dq", "ours-nf4-fp8", "ours-fp4", "ours-int8-t0", "ours-int8-t6"),
)
ALL = (*EAGER, *(f"{name}-compile" for name in EAGER))
# of a record -> the times that it is of, and its column
RATIOS = {
    "ratio": ("step_s", "ratio"),
    "streamed_ratio": ("streamed_step_s", "in a row"),
    "kernel_ratio": ("kernel_s", "kernels"),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a 16-bit FLUX file; random_flux.py makes one")
    parser.add_argument("--variants", default=",".join(DEFAULT), help="of variants.py, or all")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    add_options(parser)
    parser.add_argument("--kernels", action="store_true", help="sum up the time of the kernels, too")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no variant is begun after so many")
    parser.add_argument("--gguf", help="folder of ComfyUI-GGUF, for gguf-…; else COMFYUI_GGUF_PATH")
    parser.add_argument(
        "--out", required=True, help="JSON lines, one measurement each; a table (.md) and a chart (.png) go beside"
    )
    arguments = parser.parse_args()
    arguments.variants = ALL if arguments.variants == "all" else arguments.variants.split(",")
    if BASELINE not in arguments.variants:
        parser.error(f"--variants must name {BASELINE}, which the ratios are taken to")
    return arguments


@contextlib.contextmanager
def peers_files(variants: Sequence[str], checkpoint: str) -> Iterator[None]:
    """What some peers load instead of the checkpoint is made of it, and removed again."""
    made = []
    try:
        for name in dict.fromkeys(variant.partition("-compile")[0] for variant in variants):
            peer, _, kind = name.partition("-")
            if peer in ("gguf", "diffusers"):
                # where this fails, so does the variant, and its record says that its file is missing
                with contextlib.suppress(RunFailed):
                    made.append(only(in_fresh_process(f"peer_{peer}.py", checkpoint, kind))["path"])
        yield
    finally:
        for path in made:
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.remove(path)


def measure(variant: str, arguments: argparse.Namespace, references: str) -> Iterator[dict]:
    flags = ["--steps", str(arguments.steps), *options(arguments), "--references", references]
    if variant.startswith("ours"):
        flags.append("--reload")
    if arguments.kernels:
        flags.append("--kernels")
    try:
        yield from in_fresh_process("measure.py", variant, arguments.checkpoint, *flags)
    except RunFailed as failure:
        yield {"variant": variant, "error": str(failure)}


def ratios(record: dict, baseline: dict) -> dict[str, float]:
    """Of the times of ``record`` to those of the baseline, as far as both have them."""
    return {
        ratio: record[key] / baseline[key] for ratio, (key, _) in RATIOS.items() if key in record and key in baseline
    }


def table(records: list[dict]) -> str:
    """Medians over the rounds, as Markdown."""
    rows = []
    shown = [ratio for ratio in RATIOS if any(ratio in record for record in records)]
    points = list(dict.fromkeys(Point.of(record) for record in records if "size" in record))
    for variant in dict.fromkeys(record["variant"] for record in records):
        for point in points:
            there = [r for r in records if r["variant"] == variant and Point.of(r) == point]
            row = median_row(variant, there, shown)
            rows.append([*row[:1], *([str(point)] if len(points) > 1 else []), *row[1:]])
    where = ["at"] if len(points) > 1 else []
    columns = ["s/step", *(RATIOS[ratio][1] for ratio in shown), "min-max s", "peak GiB", "load s", "error"]
    return markdown(["variant", *where, *columns], rows)


def median_row(variant: str, records: list[dict], shown: Sequence[str]) -> list[str]:
    good = [record for record in records if "error" not in record]
    if not good:
        return [variant, "failed"]

    def median(key: str) -> float:
        return statistics.median(record[key] for record in good)

    return [
        variant,
        f"{median('step_s'):.4f}",
        *(f"{median(ratio):.3f}" if all(ratio in record for record in good) else "" for ratio in shown),
        f"{min(r['step_min_s'] for r in good):.4f}-{max(r['step_max_s'] for r in good):.4f}",
        f"{median('peak_gib'):.2f}",
        f"{median('load_s'):.1f}",
        f"{median('rel_err'):.4f}" if all(record["rel_err"] is not None for record in good) else "",
    ]


def main():
    arguments = parse()
    if arguments.gguf:
        os.environ["COMFYUI_GGUF_PATH"] = arguments.gguf
    variants = sorted(arguments.variants, key=BASELINE.__ne__)  # the baseline first
    records = Records(arguments.out)
    deadline = time.monotonic() + 60 * arguments.minutes
    baselines: dict[tuple[int, Point], dict] = {}
    with tempfile.TemporaryDirectory() as references, peers_files(variants, arguments.checkpoint):
        for round_number, variant in itertools.product(range(arguments.rounds), variants):
            if time.monotonic() > deadline:
                print(f"left out, {arguments.minutes:g} minutes are over: {variant}, round {round_number}", flush=True)
                continue
            for record in measure(variant, arguments, references):
                if variant == BASELINE and "error" in record and not baselines:
                    raise SystemExit(f"{BASELINE} failed, so there is nothing to compare with: {record['error']}")
                if "step_s" in record:
                    place = round_number, Point.of(record)
                    if variant == BASELINE:
                        baselines[place] = record
                    if place in baselines:
                        record |= ratios(record, baselines[place])
                records.add(record | {"round": round_number})
    records.finish(table)
    draw([arguments.out], os.path.splitext(arguments.out)[0] + ".png")


if __name__ == "__main__":
    main()
