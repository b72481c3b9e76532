"""Measures one variant in this process and prints one JSON line. ``compare.py`` runs it for many.

1024×1024, euler, simple, cfg 1, guidance 3.5, 256 text tokens: 4352 tokens a step, through the host's sampler.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence

GIB = 2**30
TEXT_TOKENS = 256
PROFILED_STEPS = 2


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("variant")
    parser.add_argument("checkpoint")
    parser.add_argument("--reference", help="file of the latents to compare with; written if it is not there")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, default=1024)
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


def sample(model, arguments: argparse.Namespace, condition=None):
    """Latents, and the seconds of each step, synchronised. Without a ``condition``, a random one."""
    import comfy.sample
    import torch

    side = arguments.size // 8
    latent = torch.zeros(1, 16, side, side)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    if condition is None:
        context = torch.randn(1, TEXT_TOKENS, 4096, generator=generator)
        condition = [[context, {"pooled_output": torch.randn(1, 768, generator=generator), "guidance": 3.5}]]
    seconds = []
    last = time.perf_counter()

    def on_step(step, denoised, x, total):
        nonlocal last
        synchronize()
        now = time.perf_counter()
        seconds.append(now - last)
        last = now

    result = comfy.sample.sample(
        model, noise, arguments.steps, 1.0, "euler", "simple", condition, condition, latent,
        disable_pbar=True, callback=on_step, seed=0,
    )  # fmt: skip
    return result, seconds


@contextlib.contextmanager
def issuing(model) -> Iterator[list[float]]:
    """Collects the seconds after which each prediction of ``model`` is issued to the GPU, done or not.

    Where that is no less than a step takes, the step waits for the CPU.
    """
    inner, seconds = model.model, []
    apply_model = inner.apply_model

    def timed(*args, **kwargs):
        start = time.perf_counter()
        result = apply_model(*args, **kwargs)
        seconds.append(time.perf_counter() - start)
        return result

    inner.apply_model = timed
    try:
        yield seconds
    finally:
        del inner.apply_model


def kernel_seconds(model, arguments: argparse.Namespace) -> float:
    """What the kernels of a step take on the GPU, one after the other."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    few = argparse.Namespace(**vars(arguments) | {"steps": PROFILED_STEPS})
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        sample(model, few)
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


def relative_error(result, path: str | None) -> float | None:
    import torch

    if path is None:
        return None
    if not os.path.exists(path):
        torch.save(result, path)
        return 0.0
    reference = torch.load(path)
    return ((result - reference).norm() / reference.norm()).item()


def main():
    arguments = parse()
    start_host()
    import comfy.model_management
    import torch
    from variants import VARIANTS

    record = {"variant": arguments.variant, "size": arguments.size, "steps": arguments.steps}
    with torch.inference_mode():
        start = time.perf_counter()
        model = VARIANTS[arguments.variant](arguments.checkpoint)
        synchronize()
        record["load_s"] = time.perf_counter() - start
        record["peak_load_gib"] = peak_gib()
        record["model_gib"] = model.model_size() / GIB
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with issuing(model) as issued:
            result, seconds = sample(model, arguments)
        steady = seconds[2:] or seconds
        record |= {
            "step_s": statistics.median(steady),
            "step_min_s": min(steady),
            "step_max_s": max(steady),
            "issue_s": statistics.median(issued[2:] or issued),
            "first_step_s": seconds[0],
            "peak_gib": peak_gib(),
            "finite": bool(result.isfinite().all()),
            "rel_err": relative_error(result, arguments.reference),
        }
        if arguments.reload:
            comfy.model_management.unload_all_models()
            again, _ = sample(model, arguments)
            record["bit_equal_after_reload"] = torch.equal(result, again)
        if arguments.kernels:
            record["kernel_s"] = kernel_seconds(model, arguments)
    print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
