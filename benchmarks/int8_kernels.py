"""The int8 product at FLUX's sizes: ours in many configurations, bf16, bitsandbytes and comfy-kitchen.

python benchmarks/int8_kernels.py --out int8.jsonl

Each configuration first compiles and is compared with the reference in a process of its own, several at a time; one
that fails there is reported and left out. Times are of one product, activations quantized, weights not in the L2 cache.
"Outliers" are input columns beyond threshold 6. The sums are over one step of 1024×1024 with 256 text tokens.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import faulthandler
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from quantflux.quant_core.kernels.int8_configs import FEW_TOKENS, SOME_TOKENS, MatmulConfig

# name: tokens, rows, columns, products a step
CASES = {
    "single linear1": (4352, 21504, 3072, 38),
    "single linear2": (4352, 3072, 15360, 38),
    "img qkv": (4096, 9216, 3072, 19),
    "img proj": (4096, 3072, 3072, 19),
    "img mlp.0": (4096, 12288, 3072, 19),
    "img mlp.2": (4096, 3072, 12288, 19),
    "txt qkv": (256, 9216, 3072, 19),
    "txt proj": (256, 3072, 3072, 19),
    "txt mlp.0": (256, 12288, 3072, 19),
    "txt mlp.2": (256, 3072, 12288, 19),
    "double mod": (1, 18432, 3072, 38),
    "single mod": (1, 9216, 3072, 38),
}

KITCHEN = ("cuda", "triton")  # back ends of comfy-kitchen; the CUDA one is in its larger wheel alone


def plain(m, n, k, warps, stages, **more) -> MatmulConfig:
    return MatmulConfig(m, n, k, warps, stages, **more)


def hopper(m, n, k, warps, stages, persistent=1, **more) -> MatmulConfig:
    return MatmulConfig(m, n, k, warps, stages, kernel="hopper", persistent=persistent, **more)


MANY = [
    hopper(128, 256, 128, 8, 3),
    hopper(128, 256, 128, 8, 4),
    hopper(128, 256, 128, 8, 4, group=4),
    hopper(128, 256, 128, 8, 4, group=16),
    hopper(128, 256, 64, 8, 6),
    hopper(256, 128, 128, 8, 4),
    hopper(256, 128, 128, 8, 4, group=4),
    hopper(128, 128, 128, 4, 3, persistent=2),
    hopper(128, 128, 128, 4, 3, persistent=0),
    plain(256, 128, 128, 8, 3),
    plain(128, 256, 128, 8, 4),
    plain(128, 128, 64, 4, 5),
    plain(128, 128, 128, 4, 3),
]
SOME = [
    hopper(128, 128, 128, 4, 6),
    hopper(128, 128, 128, 4, 3, persistent=2),
    hopper(64, 128, 128, 4, 4, persistent=2),
    hopper(64, 64, 128, 4, 6, persistent=2),
    plain(64, 128, 128, 4, 4),
    plain(64, 64, 128, 4, 4),
    plain(64, 64, 256, 4, 3),
    plain(128, 64, 128, 4, 4),
    plain(128, 128, 128, 8, 3),
]
FEW = [
    plain(16, 64, 256, 4, 3),
    plain(16, 64, 256, 4, 5),
    plain(16, 32, 256, 4, 4),
    plain(16, 32, 512, 4, 3),
    plain(16, 32, 512, 2, 3),
    plain(16, 16, 512, 2, 3),
]


def candidates(tokens: int) -> list[MatmulConfig]:
    return FEW if tokens <= FEW_TOKENS else SOME if tokens <= SOME_TOKENS else MANY


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="file of JSON lines; by default they are printed")
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES), metavar="CASE")
    parser.add_argument("--kernels", nargs="*", default=["plain", "hopper"])
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--try-out", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=115, help="then it ends, whatever hangs")
    return parser.parse_args()


def inputs(tokens: int, columns: int, outliers: int, dtype=torch.bfloat16) -> torch.Tensor:
    """Gaussian within ±5, and ``outliers`` columns with a value beyond 6 in every 50th token."""
    x = torch.randn(tokens, columns, device="cuda").clamp_(-5, 5)
    x[::50, torch.randperm(columns, device="cuda")[:outliers]] = 20.0
    return x.to(dtype)


def weights(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In bfloat16, and its int8 codes with their row scales."""
    from quantflux.quant_core.kernels.int8_reference import quantize_rows_reference

    plain_weight = (torch.randn(rows, columns, device="cuda") * 0.02).bfloat16()
    return plain_weight, *quantize_rows_reference(plain_weight)[:2]


def relative_error(y: torch.Tensor, reference: torch.Tensor) -> float:
    return ((y.double() - reference.double()).norm() / reference.double().norm()).item()


def try_out(config: MatmulConfig, tokens: int) -> float:
    """Compile for threshold 0 and 6 (kept in Triton's cache) and return the larger error against the reference."""
    from quantflux.quant_core.kernels.int8_reference import int8_linear_reference
    from quantflux.quant_core.kernels.int8_triton import int8_linear_triton

    x = inputs(min(tokens, 600), 2048, 40)
    _, codes, scale = weights(1536, 2048)
    bias = torch.randn(1536, device="cuda").bfloat16()
    errors = []
    for threshold in (0.0, 6.0):
        y = int8_linear_triton(x, codes, scale, bias, threshold, config=config)
        errors.append(relative_error(y, int8_linear_reference(x, codes, scale, bias, threshold)))
    return max(errors)


def survivors(configs: dict[MatmulConfig, int], workers: int) -> set[MatmulConfig]:
    """Those of ``configs`` (with their tokens) that compile, run and are right, each in a process of its own."""

    def attempt(config: MatmulConfig, tokens: int) -> str:
        described = json.dumps([dataclasses.asdict(config), tokens])
        try:
            result = subprocess.run(
                [sys.executable, __file__, "--try-out", described], capture_output=True, text=True, timeout=60
            )
        except subprocess.TimeoutExpired:
            return "FAILED: did not end in 60 s"
        if result.returncode:
            return f"FAILED: {result.stderr.strip()[-300:]}"
        error = float(result.stdout.split()[-1])
        return "" if error < 4e-3 else f"WRONG: relative error {error:.2e}"  # bfloat16's rounding is 2e-3

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        complaints = dict(zip(configs, pool.map(attempt, configs, configs.values()), strict=True))
    for config, complaint in complaints.items():
        if complaint:
            print(f"{short(config)} {complaint}", flush=True)
    return {config for config, complaint in complaints.items() if not complaint}


def short(config: MatmulConfig) -> str:
    """The configuration as it is written in int8_configs.py, without its defaults."""
    names = [field.name for field in dataclasses.fields(config)]
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    shown = [repr(getattr(config, name)) for name in names[:3]]
    shown += [f"{n}={getattr(config, n)!r}" for n in names[3:] if getattr(config, n) != defaults[n]]
    return f"MatmulConfig({', '.join(shown)})"


def milliseconds(call: Callable[[int], object], copies: int, graph: bool = True) -> float:
    """Median time of ``call(i)``, which goes round ``copies`` of the weights; replayed from a CUDA graph, or called."""

    def timed(function: Callable[[], object]) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def all_copies(rounds: int = 1):
        for i in range(rounds * copies):
            call(i % copies)

    all_copies()
    once = timed(all_copies)
    rounds = max(1, min(20, math.ceil(6 / once)))
    if not graph:
        return statistics.median(timed(lambda: all_copies(rounds)) for _ in range(5)) / (rounds * copies)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        all_copies(rounds)
    recorded.replay()
    return statistics.median(timed(recorded.replay) for _ in range(7)) / (rounds * copies)


class Case:
    """Tensors of one size, and the measurements on them."""

    def __init__(self, name: str, emit: Callable[[dict], None]):
        self.name, self.emit = name, emit
        self.tokens, self.rows, self.columns, self.products = CASES[name]
        # beyond the 50 MB of the H100's L2 cache
        self.copies = max(2, math.ceil(1.2e8 / (self.rows * self.columns)))
        self.weights = [weights(self.rows, self.columns) for _ in range(self.copies)]
        self.bias = torch.randn(self.rows, device="cuda").bfloat16()
        self.x = {count: inputs(self.tokens, self.columns, count) for count in (0, 8, 64)}
        self.times: dict[str, float] = {}

    def measure(self, variant: str, call: Callable[[int], object], graph: bool = True, **about):
        try:
            ms = milliseconds(call, self.copies, graph)
        except Exception as error:
            torch.cuda.synchronize()
            print(f"FAILED {self.name}, {variant}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            return
        self.times[variant] = ms
        tops = 2 * self.tokens * self.rows * self.columns / ms / 1e9
        self.emit(
            {"case": self.name, "tokens": self.tokens, "rows": self.rows, "columns": self.columns}
            | {"products": self.products, "variant": variant, "ms": round(ms, 5), "tops": round(tops, 1)}
            | about
        )

    def peers(self):
        from quantflux.quant_core.kernels.int8 import _int8_linear_bitsandbytes
        from quantflux.quant_core.kernels.int8_reference import int8_linear_reference

        x, bias = self.x[0], self.bias
        self.measure("bf16", lambda i: torch.nn.functional.linear(x, self.weights[i][0], bias))
        for threshold, graph in ((0.0, True), (6.0, False)):  # with a threshold it asks for the count: no graph
            self.measure(
                f"bitsandbytes t{threshold:g}",
                lambda i, t=threshold: _int8_linear_bitsandbytes(x, *self.weights[i][1:], bias, t),
                graph,
            )
        try:
            import comfy_kitchen
        except ImportError:
            return
        scales = [scale / 127 for _, _, scale in self.weights]
        reference = int8_linear_reference(x, *self.weights[0][1:], bias, 0.0)
        for name, status in comfy_kitchen.list_backends().items():
            if status["available"] and "int8_linear" in status["capabilities"] and name in KITCHEN:

                def product(i: int) -> torch.Tensor:
                    return comfy_kitchen.int8_linear(x, self.weights[i][1], scales[i], bias)

                with comfy_kitchen.use_backend(name):
                    error = relative_error(product(0), reference)
                    self.measure(f"comfy-kitchen {name}", product, rel_err=round(error, 6))

    def ours(self, configs: list[MatmulConfig]) -> dict[float, MatmulConfig]:
        """Measure the parts, the operator and each configuration; return the fastest at either threshold."""
        from quantflux.quant_core.kernels.int8 import int8_linear
        from quantflux.quant_core.kernels.int8_quantize import quantize_rows
        from quantflux.quant_core.kernels.int8_reference import int8_linear_reference
        from quantflux.quant_core.kernels.int8_triton import int8_linear_triton

        x, bias = self.x[0], self.bias
        for threshold in (0.0, 6.0):
            self.measure(f"quantize t{threshold:g}", lambda i, t=threshold: quantize_rows(x, *self.weights[i][1:], t))
        for threshold, count in ((0.0, 0), (6.0, 0), (6.0, 8), (6.0, 64)):
            inputs_, (_, codes, scale) = self.x[count], self.weights[0]
            reference = int8_linear_reference(inputs_, codes, scale, bias, threshold)
            error = relative_error(int8_linear(inputs_, codes, scale, bias, threshold), reference)
            del reference
            self.measure(
                f"ours t{threshold:g}" + (f", {count} outliers" if count else ""),
                lambda i, x=inputs_, t=threshold: int8_linear(x, *self.weights[i][1:], bias, t),
                rel_err=round(error, 6),
            )
        best = {}
        for threshold in (0.0, 6.0):
            for config in configs:
                self.measure(
                    f"t{threshold:g} {short(config)}",
                    lambda i, t=threshold, c=config: int8_linear_triton(x, *self.weights[i][1:], bias, t, config=c),
                )
            timed = {c: self.times[v] for c in configs if (v := f"t{threshold:g} {short(c)}") in self.times}
            if timed:
                best[threshold] = min(timed, key=timed.get)
                self.times[f"best t{threshold:g}"] = timed[best[threshold]]
        return best


SHOWN = ("bf16", "bitsandbytes t0", "bitsandbytes t6", "comfy-kitchen triton", "comfy-kitchen cuda") + (
    "quantize t0", "quantize t6",
    "ours t0", "ours t6", "ours t6, 8 outliers", "ours t6, 64 outliers", "best t0", "best t6",
)  # fmt: skip


def main():
    arguments = parse()
    if not torch.cuda.is_available():
        raise SystemExit("This measures on a CUDA GPU, and there is none.")
    if arguments.try_out:
        fields, tokens = json.loads(arguments.try_out)
        print(try_out(MatmulConfig(**fields), tokens))
        return
    faulthandler.dump_traceback_later(arguments.seconds, exit=True)
    lines = open(arguments.out, "w") if arguments.out else None

    def emit(record: dict):
        print(json.dumps(record, ensure_ascii=False), file=lines, flush=True)

    emit({"device": torch.cuda.get_device_name(), "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")})
    wanted = {
        config: CASES[name][0]
        for name in arguments.cases
        for config in candidates(CASES[name][0])
        if config.kernel in arguments.kernels
    }
    started = time.monotonic()
    good = survivors(wanted, arguments.workers)
    print(f"{len(good)} of {len(wanted)} configurations are right, {time.monotonic() - started:.0f} s", flush=True)

    sums = dict.fromkeys(SHOWN, 0.0)
    for name in arguments.cases:
        with torch.inference_mode():
            case = Case(name, emit)
            case.peers()
            best = case.ours([c for c in candidates(case.tokens) if c in good])
        print(f"\n{name}: {case.tokens} tokens, ({case.rows}, {case.columns}), {case.products} a step; ms")
        print("  " + "; ".join(f"{variant} {case.times[variant]:.4f}" for variant in SHOWN if variant in case.times))
        timed = {v: ms for v, ms in case.times.items() if "MatmulConfig" in v and v.startswith("t0")}
        for variant, ms in sorted(timed.items(), key=lambda item: item[1])[:4]:
            other = case.times.get(variant.replace("t0", "t6", 1), float("nan"))
            tops = 2 * case.tokens * case.rows * case.columns / ms / 1e9
            print(f"    {ms:.4f} (t6 {other:.4f}) {tops:5.0f} TOP/s {variant[3:]}")
        for threshold, config in best.items():
            print(f"  t{threshold:g}: ({case.rows}, {case.columns}): {short(config)},", flush=True)
        for variant in SHOWN:
            sums[variant] += case.products * case.times.get(variant, float("nan"))
        del case
        torch.cuda.empty_cache()
    print("\nover one step, ms:")
    for variant, ms in sums.items():
        print(f"  {variant:24} {ms:8.2f}")
    emit({"step_ms": {variant: None if math.isnan(ms) else round(ms, 3) for variant, ms in sums.items()}})
    if lines:
        lines.close()


if __name__ == "__main__":
    main()
