"""Measures one variant in this process and prints one JSON line for each point. ``compare.py`` runs it for many.

1024×1024, euler, simple, cfg 1, guidance 3.5, 256 text tokens: 4352 tokens a step, through the host's sampler.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence

from points import Point, add_options, points

GIB = 2**30
BASELINE = "stock-bf16"
PROFILED_STEPS = 2


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant")
    parser.add_argument("checkpoint")
    parser.add_argument("--references", help=f"folder of the latents to compare with; {BASELINE} writes them")
    parser.add_argument("--steps", type=int, default=10)
    add_options(parser)
    parser.add_argument("--reload", action="store_true", help="unload, sample again, and compare bit for bit")
    parser.add_argument("--kernels", action="store_true", help="sum up the time of the kernels, too (CUDA)")
    return parser.parse_args()


def start_host(flags: Sequence[str] = ()):
    """Import the host as its own main.py would, from COMFYUI_PATH, with ``flags`` such as lowvram."""
    sys.path.insert(0, os.environ["COMFYUI_PATH"])
    sys.argv = sys.argv[:1]  # the host reads the command line too
    import comfy.options

    comfy.options.enable_args_parsing(False)
    import comfy.cli_args
    import torch

    comfy.cli_args.args.cpu = not torch.cuda.is_available()
    for flag in flags:
        name, _, value = flag.partition("=")
        setattr(comfy.cli_args.args, name.replace("-", "_"), float(value) if value else True)


def sample(
    model,
    steps: int,
    point: Point,
    condition=None,
    after_step: Callable[[int], None] = lambda step: None,
    wait: bool = True,
):
    """Latents, and the seconds of each step. Without a ``condition``, a random one.

    Args:
        after_step: called with the number of each step, whose time is not counted.
        wait: for the GPU after each step; else the seconds are those until it was issued.
    """
    import comfy.sample
    import torch

    side = point.size // 8
    latent = torch.zeros(point.batch, 16, side, side)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    if condition is None:
        context = torch.randn(1, point.text_tokens, 4096, generator=generator)
        condition = [[context, {"pooled_output": torch.randn(1, 768, generator=generator), "guidance": 3.5}]]
    seconds = []
    last = time.perf_counter()

    def on_step(step, denoised, x, total):
        nonlocal last
        if wait:
            synchronize()
        seconds.append(time.perf_counter() - last)
        after_step(step)
        last = time.perf_counter()

    result = comfy.sample.sample(
        model, noise, steps, 1.0, "euler", "simple", condition, condition, latent,
        disable_pbar=True, callback=on_step, seed=0,
    )  # fmt: skip
    return result, seconds


@contextlib.contextmanager
def issuing(model) -> Iterator[list[tuple[float, float]]]:
    """Collects the seconds after which each prediction of ``model`` is issued to the GPU, done or not.

    Where that is no less than a step takes, the step waits for the CPU. The second figure of each is what the thread
    ran meanwhile: where it is much less, the thread waited, for a lock or for a processor that others use.
    """
    inner, seconds = model.model, []
    apply_model = inner.apply_model

    def timed(*args, **kwargs):
        start, ran = time.perf_counter(), time.thread_time()
        result = apply_model(*args, **kwargs)
        seconds.append((time.perf_counter() - start, time.thread_time() - ran))
        return result

    inner.apply_model = timed
    try:
        yield seconds
    finally:
        del inner.apply_model


def streamed_seconds(model, steps: int, point: Point) -> list[float]:
    """From the end of each step on the GPU to that of the next, where nothing waits for the GPU in between: as ComfyUI
    samples without previews."""
    import torch

    ends = []

    def after_step(step: int):
        ends.append(torch.cuda.Event(enable_timing=True))
        ends[-1].record()

    sample(model, steps, point, after_step=after_step, wait=False)
    synchronize()
    return [first.elapsed_time(second) / 1e3 for first, second in itertools.pairwise(ends)]


def python_seconds() -> float:
    """What a fixed piece of Python takes. On a processor that others share it may take twice as long for a while, and
    then so does issuing."""
    start, kept = time.perf_counter(), {}
    for i in range(20000):
        kept[i & 255] = (i, None)
    return time.perf_counter() - start


def kernel_seconds(model, point: Point) -> float:
    """What the kernels of a step take on the GPU, one after the other."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        sample(model, PROFILED_STEPS, point)
        synchronize()
    on_gpu = (event for event in profiled.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA)
    return sum(event.self_device_time_total for event in on_gpu) / 1e6 / PROFILED_STEPS


def synchronize():
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gib() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else 0.0


def relative_error(result, reference: str | None, is_baseline: bool) -> float | None:
    """Of latents to those in a file, which the baseline writes. None where there is nothing to compare with."""
    import torch

    if reference is None:
        return None
    if not os.path.exists(reference):
        if not is_baseline:
            return None
        torch.save(result, reference)
    expected = torch.load(reference)
    return ((result - expected).norm() / expected.norm()).item()


def measured(model, point: Point, arguments: argparse.Namespace, thorough: bool) -> dict:
    """Figures of one point. ``thorough``: also what ``--reload`` and ``--kernels`` ask for."""
    import comfy.model_management
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    python = []
    with issuing(model) as issued:
        result, seconds = sample(model, arguments.steps, point, after_step=lambda step: python.append(python_seconds()))
    steady = seconds[2:] or seconds
    issue, ran = zip(*(issued[2:] or issued), strict=True)
    reference = arguments.references and os.path.join(arguments.references, f"{point}.pt")
    record = {
        "step_s": statistics.median(steady),
        "step_min_s": min(steady),
        "step_max_s": max(steady),
        "issue_s": statistics.median(issue),
        "issue_thread_s": statistics.median(ran),
        "python_s": statistics.median(python),
        "first_step_s": seconds[0],
        "peak_gib": peak_gib(),
        "finite": bool(result.isfinite().all()),
        "rel_err": relative_error(result, reference, arguments.variant == BASELINE),
    }
    if torch.cuda.is_available():
        record["streamed_step_s"] = statistics.median(streamed_seconds(model, arguments.steps, point)[1:])
    if arguments.reload and thorough:
        comfy.model_management.unload_all_models()
        again, _ = sample(model, arguments.steps, point)
        record["bit_equal_after_reload"] = torch.equal(result, again)
    if arguments.kernels and thorough and torch.cuda.is_available():
        record["kernel_s"] = kernel_seconds(model, point)
    return record


def main():
    arguments = parse()
    start_host()
    import torch
    from variants import VARIANTS

    if arguments.variant not in VARIANTS:
        raise SystemExit(f"{arguments.variant} is none of the variants: {', '.join(VARIANTS)}")
    with torch.inference_mode():
        start = time.perf_counter()
        model = VARIANTS[arguments.variant](arguments.checkpoint)
        synchronize()
        loaded = {
            "load_s": time.perf_counter() - start,
            "peak_load_gib": peak_gib(),
            "model_gib": model.model_size() / GIB,
        }
        for i, point in enumerate(points(arguments)):
            described = {"variant": arguments.variant, **dataclasses.asdict(point), "steps": arguments.steps}
            try:
                record = measured(model, point, arguments, thorough=i == 0)
            except Exception as error:
                # the other points are measured all the same: a large one may not fit
                traceback.print_exc()
                record = {"error": f"{type(error).__name__}: {error}"[:500]}
            print(json.dumps(described | loaded | record), flush=True)


if __name__ == "__main__":
    main()
