"""What the GPU does in a step: milliseconds of each kernel by name, and how long it idles between them.

    COMFYUI_PATH=/some/ComfyUI python benchmarks/timeline.py flux.safetensors --variants stock-bf16,ours-nf4 \\
        --out benchmarks/results/timeline.jsonl

Each variant is a fresh process. Its first steps, which compile and load, are not counted; those that are, are profiled.
With ``--gaps`` two more are, together with what the processor asks of CUDA: what that was while the GPU idled longest,
and which calls took longest, since they wait for the GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence

from gaps import Span, idle, longest_calls, longest_gaps
from measure import BASELINE, PROFILED_STEPS, issuing, sample, start_host, synchronize
from points import Point
from records import Records, RunFailed, in_fresh_process, markdown, only

SKIPPED, PROFILED = 4, 4  # steps
BOUNDS_US = (2, 4, 10, 50, 500, float("inf"))  # into which gaps are sorted by their length
SHOWN = 30  # kernels of which the name is kept, those that take most


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a 16-bit FLUX file; random_flux.py makes one")
    parser.add_argument("--variants", default=BASELINE, help="of variants.py")
    parser.add_argument("--size", type=int, default=Point.size)
    parser.add_argument("--gaps", action="store_true", help="also what was asked of CUDA while the GPU idled longest")
    parser.add_argument("--out", help="JSON lines, one variant each; a Markdown table goes beside")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    return parser.parse_args()


def summary(kernels: Sequence[Span], steps: int) -> dict:
    """Milliseconds a step of ``kernels``, which may overlap: all together, by name, and of the gaps between them."""
    took, count, gaps = Counter(), Counter(), Counter()
    for begin, end, name in kernels:
        took[name] += end - begin
        count[name] += 1
    for begin, end, *_ in idle(kernels):
        gaps[next(bound for bound in BOUNDS_US if end - begin < bound)] += end - begin
    span = max((end for _, end, _ in kernels), default=0) - min((begin for begin, *_ in kernels), default=0)

    def per_step(microseconds: float) -> float:
        return round(microseconds / steps / 1e3, 3)

    return {
        "kernel_ms": per_step(took.total()),
        "busy_ms": per_step(span - gaps.total()),
        "idle_ms": per_step(gaps.total()),
        "kernels": count.total() / steps,
        "idle_ms_in_gaps_below_us": {str(bound): per_step(gaps[bound]) for bound in BOUNDS_US},
        "by_name": [[name[:100], count[name] / steps, per_step(us)] for name, us in took.most_common(SHOWN)],
    }


def run_once(arguments: argparse.Namespace):
    """Measure one variant; prints one JSON line."""
    start_host()
    import torch
    from torch.profiler import ProfilerActivity, profile
    from variants import VARIANTS

    profiler = profile(activities=[ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU])

    def after_step(step: int):
        if step == SKIPPED - 1:
            profiler.start()

    with torch.inference_mode():
        model = VARIANTS[arguments.once](arguments.checkpoint)
        with issuing(model) as issued:
            _, seconds = sample(model, SKIPPED + PROFILED, Point(arguments.size), after_step=after_step)
        synchronize()
        profiler.stop()
    on_gpu = torch.autograd.DeviceType.CUDA
    kernels = [
        (event.time_range.start, event.time_range.end, event.name)
        for event in profiler.events()
        if event.device_type == on_gpu
    ]
    record = {
        "variant": arguments.once,
        "size": arguments.size,
        "step_s": statistics.median(seconds[2:SKIPPED]),
        "profiled_step_s": statistics.median(seconds[SKIPPED:]),
        "issue_s": statistics.median(wall for wall, _ in issued[2:SKIPPED]),
    }
    record |= summary(kernels, PROFILED)
    if arguments.gaps:
        with torch.inference_mode():
            trace = traced(model, Point(arguments.size))
        record |= {"longest_gaps": longest_gaps(trace), "longest_calls": longest_calls(trace)}
    print(json.dumps(record), flush=True)


def traced(model, point: Point) -> dict:
    """What torch's profiler saw of steps on the GPU, and of the calls of CUDA that were for them.

    Not of Python's functions and torch's operators: with those a step takes several times as long to issue.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        sample(model, PROFILED_STEPS, point, wait=False)
        synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "trace.json")
        profiler.export_chrome_trace(path)
        with open(path) as file:
            return json.load(file)


def run(arguments: argparse.Namespace, variant: str) -> dict:
    try:
        words = [arguments.checkpoint, "--once", variant, "--size", arguments.size]
        return only(in_fresh_process("timeline.py", *words, *(["--gaps"] if arguments.gaps else [])))
    except RunFailed as failure:
        return {"variant": variant, "error": str(failure)}


def table(records: list[dict]) -> str:
    header = "variant", "s/step", "issued after s", "kernels ms", "idle ms", "launches"

    def row(r: dict) -> list[str]:
        if "error" in r:
            return [r["variant"], f"failed: {r['error'][:80]}"]
        numbers = f"{r['step_s']:.4f}", f"{r['issue_s']:.4f}", f"{r['kernel_ms']:.1f}", f"{r['idle_ms']:.1f}"
        return [r["variant"], *numbers, f"{r['kernels']:.0f}"]

    return markdown(header, map(row, records))


def main():
    arguments = parse()
    if arguments.once:
        run_once(arguments)
        return
    records = Records(arguments.out)
    for variant in arguments.variants.split(","):
        records.add(run(arguments, variant))
    records.finish(table)


if __name__ == "__main__":
    main()
