"""Times the 4-bit kernels at FLUX.1-dev's shapes, each launch of a short list, against bitsandbytes and plain bfloat16.

    python benchmarks/four_bit_kernels.py --out four_bit_kernels.jsonl

Prints JSON lines: whether the kernels give bitsandbytes' bits; milliseconds of each way at each shape, and gigabytes a
second of those that only move memory; then the sums over the block linears of one step of 1024×1024 with 256 text
tokens. Needs a CUDA GPU and `quantflux` installed, no ComfyUI. A launch that fails is recorded and left out. ``way``:

- linear: bfloat16 product alone. bnb: bitsandbytes' gemm_4bit. bnb_unpack, unpack, unpack_nested, add_32, add_128: the
  weight unpacked, plain or with an update of that rank. ours, lora_32, lora_128: unpacked and multiplied.
  branch_32, branch_128: unpacked, multiplied, the LoRA beside it.
- rows: unpacked to float8. quantize: inputs to float8. mm: the float8 product alone. float8: the three.
- chunks: unpacked and multiplied in parts of the rows that fit into the L2 cache. overlap: the next weight unpacked on
  a second stream while this one is multiplied.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Iterator

import torch

TEXT, IMAGE = 256, 4096
# (rows, columns, tokens) -> how many times in a step; double blocks multiply image and text apart, single ones together
STEP = {
    (9216, 3072, IMAGE): 19,
    (3072, 3072, IMAGE): 19,
    (12288, 3072, IMAGE): 19,
    (3072, 12288, IMAGE): 19,
    (9216, 3072, TEXT): 19,
    (3072, 3072, TEXT): 19,
    (12288, 3072, TEXT): 19,
    (3072, 12288, TEXT): 19,
    (21504, 3072, IMAGE + TEXT): 38,
    (3072, 15360, IMAGE + TEXT): 38,
}
# modulation, which bitsandbytes' fused kernel serves, and T5-XXL
FEW = {(18432, 3072, 1): 38, (9216, 3072, 1): 38, (6144, 3072, 1): 1}
T5 = {(4096, 4096, 512): 96, (10240, 4096, 512): 48, (4096, 10240, 512): 24}
RANKS = (32, 128)
CHUNK_BYTES = 24 * 2**20  # of unpacked weight: half of an H100's L2 cache


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="a file for the JSON lines, which are printed anyway")
    parser.add_argument("--seconds", type=float, default=100, help="begin nothing new after so many")
    parser.add_argument("--quick", action="store_true", help="only the launches that are the default")
    return parser.parse_args()


def milliseconds(run: Callable[[], object], repeat: int = 10) -> float:
    """Median of ``repeat`` runs between events.

    Before each the L2 cache is overwritten, for so long that all of the run is launched before it begins.
    """
    flush = torch.empty(64 * 2**20, dtype=torch.int32, device="cuda")
    for _ in range(2):
        run()
    times = []
    for _ in range(repeat):
        for _ in range(6):
            flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in times)[repeat // 2]


def copy_speed() -> int:
    """Gigabytes a second, read and written, of a copy on the device."""
    source, target = (torch.empty(2**29, dtype=torch.uint8, device="cuda") for _ in range(2))
    return round(2**30 / milliseconds(lambda: target.copy_(source)) / 1e6)


class Weight:
    """A packed weight, plain and nested, with what the kernels are given of it."""

    def __init__(self, rows: int, columns: int):
        from quantflux.quant_core.config import QuantConfig
        from quantflux.quant_core.kernels.four_bit import as_words, code_table
        from quantflux.quant_core.layouts import quantize

        self.rows, self.columns = rows, columns
        weight = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) * 0.02
        self.packed = quantize(weight, QuantConfig("nf4"))
        self.nested = quantize(weight, QuantConfig("nf4", double_quant=True))
        self.words = as_words(self.packed._qdata)
        self.code = code_table("nf4", self.words.device)
        self.down = {r: torch.randn(r, columns, device="cuda", dtype=torch.bfloat16) * 0.02 for r in RANKS}
        self.up = {r: torch.randn(rows, r, device="cuda", dtype=torch.bfloat16) * 0.02 for r in RANKS}

    def statistics(self, nested: bool = False) -> tuple:
        params = (self.nested if nested else self.packed)._params
        return params.scale, params.absmax_8bit, params.absmax_code, params.absmax_offset

    def bytes(self, itemsize: int) -> int:
        """Read and written by unpacking to values of ``itemsize`` bytes."""
        return int(self.rows * self.columns * (0.5 + 4 / 64 + itemsize))


def launches(quick: bool) -> dict[str, list]:
    from quantflux.quant_core.kernels.four_bit_triton import Unpack, UnpackAdd
    from quantflux.quant_core.kernels.fp8_triton import UnpackRows

    if quick:
        return {"unpack": [Unpack()], "add": [UnpackAdd()], "rows": [UnpackRows()], "quantize": [0]}
    tiles = [(64, 128, 4), (128, 128, 4), (128, 128, 8), (64, 256, 4), (64, 256, 8), (128, 256, 8), (32, 256, 4)]
    sizes = [(128, 4), (256, 4), (512, 4), (1024, 4), (256, 8), (1024, 8), (2048, 8)]
    return {
        "unpack": [Unpack(w, n) for w, n in sizes] + [Unpack(w, n, gather=False) for w, n in sizes[:4]],
        "add": [UnpackAdd(*tile) for tile in tiles] + [UnpackAdd(64, 128, 4, gather=False)],
        "rows": [UnpackRows(w, n) for w, n in ((128, 2), (64, 1), (64, 2), (128, 4), (256, 4), (512, 4))],
        "quantize": [2, 4, 8, 16],
    }


def checks(weight: Weight) -> dict:
    """Whether the kernels give bitsandbytes' bits, and how far float8 and the update are from their references."""
    from quantflux.quant_core.config import QuantConfig
    from quantflux.quant_core.kernels import fp8
    from quantflux.quant_core.kernels.four_bit import unpack_4bit, unpack_4bit_reference
    from quantflux.quant_core.layouts import FourBitLayout, quantize

    found = {}
    fp4 = quantize(torch.randn(weight.rows, weight.columns, device="cuda", dtype=torch.bfloat16), QuantConfig("fp4"))
    for name, packed in {"nf4": weight.packed, "nf4_nested": weight.nested, "fp4": fp4}.items():
        params = packed._params
        before = packed._qdata, params.scale, weight.rows, weight.columns, params.blocksize, params.quant_type
        nested = params.absmax_8bit, params.absmax_code, params.absmax_offset
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            theirs = torch.ops.bitsandbytes.dequantize_4bit(
                packed._qdata,
                FourBitLayout.absmax(params),
                params.blocksize,
                params.quant_type,
                params.orig_shape,
                dtype,
            )
            equal = torch.equal(unpack_4bit(*before, dtype, *nested), theirs)
            found[f"{name}_{str(dtype).removeprefix('torch.')}_equals_bnb"] = equal
            del theirs
        for rank in RANKS:
            update = weight.up[rank], weight.down[rank]
            ours = unpack_4bit(*before, torch.bfloat16, *nested, *update)
            expected = unpack_4bit_reference(*before, torch.bfloat16, *nested, *update)
            found[f"{name}_add_{rank}_differing"] = (ours != expected).float().mean().item()
            found[f"{name}_add_{rank}_error"] = relative(ours, expected)
            del ours, expected
        if has_float8():
            ours, scale = fp8.unpack_4bit_rows(*before, *nested)
            expected, expected_scale = fp8.unpack_4bit_rows_reference(*before, *nested)
            found[f"{name}_rows_equal"] = torch.equal(ours.view(torch.uint8), expected.view(torch.uint8))
            found[f"{name}_scales_equal"] = torch.equal(scale, expected_scale)
    if has_float8():
        x = torch.randn(1024, weight.columns, device="cuda", dtype=torch.bfloat16)
        ours, scale = fp8.quantize_rows(x)
        expected, expected_scale = fp8.quantize_rows_reference(x)
        found["inputs_equal"] = torch.equal(ours.view(torch.uint8), expected.view(torch.uint8))
        found["input_scales_equal"] = torch.equal(scale, expected_scale)
    return found


def errors() -> dict:
    """Relative errors of a product of Gaussian weights and inputs, against unquantized float32."""
    from quantflux.quant_core.config import QuantConfig
    from quantflux.quant_core.layouts import quantize
    from quantflux.quant_core.linear import linear
    from quantflux.quant_core.lora import LowRank

    weight = torch.randn(12288, 3072, device="cuda") * 0.02
    x = torch.randn(4096, 3072, device="cuda", dtype=torch.bfloat16)
    exact = x.float() @ weight.t()
    found = {}
    for precision in ("nf4", "fp4"):
        packed = quantize(weight.bfloat16(), QuantConfig(precision))
        found[precision] = relative(linear(x, packed), exact)
        if has_float8():
            found[f"{precision}_float8"] = relative(linear(x, packed, float8=True), exact)
            found[f"{precision}_ratio"] = found[f"{precision}_float8"] / found[precision]
    down = torch.randn(32, 3072, device="cuda", dtype=torch.bfloat16) * 0.02
    up = torch.randn(12288, 32, device="cuda", dtype=torch.bfloat16) * 0.02
    effect = linear(x, packed, None, LowRank(down, up)).float() - linear(x, packed).float()
    found["lora_effect"] = relative(effect, x.float() @ down.float().t() @ up.float().t())
    return found


def relative(y: torch.Tensor, expected: torch.Tensor) -> float:
    return ((y.float() - expected.float()).norm() / expected.float().norm()).item()


def has_float8() -> bool:
    return torch.cuda.get_device_capability() >= (8, 9)


def moves(weight: Weight, listed: dict[str, list]) -> Iterator[tuple[str, object, Callable[[], object], int]]:
    """(way, launch, run, bytes moved) of what depends on the weight alone."""
    from quantflux.quant_core.kernels import four_bit_triton, fp8_triton
    from quantflux.quant_core.layouts import FourBitLayout

    rows, columns = weight.rows, weight.columns
    out = torch.empty(rows, columns, device="cuda", dtype=torch.bfloat16)
    params = weight.packed._params
    yield (
        "bnb_unpack",
        None,
        lambda: torch.ops.bitsandbytes.dequantize_4bit(
            weight.packed._qdata, FourBitLayout.absmax(params), 64, "nf4", params.orig_shape, torch.bfloat16
        ),
        weight.bytes(2),
    )
    for launch in listed["unpack"]:
        for way, nested in (("unpack", False), ("unpack_nested", True)):
            statistics = weight.statistics(nested)
            words = weight.words if not nested else weight.nested._qdata.flatten().view(torch.int32)
            yield (
                way,
                launch,
                lambda w=words, s=statistics, n=launch: four_bit_triton.unpack(w, s, weight.code, out, 64, n),
                weight.bytes(2),
            )
    for launch in listed["add"]:
        for rank in RANKS:
            yield (
                f"add_{rank}",
                launch,
                lambda r=rank, n=launch: four_bit_triton.unpack_add(
                    weight.words, weight.statistics(), weight.code, weight.up[r], weight.down[r], out, 64, n
                ),
                weight.bytes(2),
            )
    if has_float8():
        eighth = torch.empty(rows, columns, device="cuda", dtype=torch.float8_e4m3fn)
        scale = torch.empty(rows, 1, device="cuda")
        for launch in listed["rows"]:
            yield (
                "rows",
                launch,
                lambda n=launch: fp8_triton.unpack_rows(
                    weight.words, weight.statistics(), weight.code, eighth, scale, 64, n
                ),
                weight.bytes(1),
            )


def quantizations(columns: int, tokens: int, listed: dict[str, list]) -> Iterator[tuple]:
    from quantflux.quant_core.kernels import fp8_triton

    x = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(tokens, columns, device="cuda", dtype=torch.float8_e4m3fn)
    scale = torch.empty(tokens, 1, device="cuda")
    for warps in listed["quantize"]:
        yield "quantize", warps, lambda n=warps: fp8_triton.quantize_rows(x, out, scale, n), 3 * x.numel()


def products(weight: Weight, tokens: int) -> Iterator[tuple]:
    """(way, None, run, None) of whole products, by the launches that are the default."""
    from quantflux.quant_core.kernels import fp8
    from quantflux.quant_core.layouts import FourBitLayout, dequantize
    from quantflux.quant_core.linear import linear
    from quantflux.quant_core.lora import LowRank

    packed, params = weight.packed, weight.packed._params
    x = torch.randn(tokens, weight.columns, device="cuda", dtype=torch.bfloat16)
    bias = torch.zeros(weight.rows, device="cuda", dtype=torch.bfloat16)
    plain = dequantize(packed, torch.bfloat16)
    low_rank = {r: LowRank(weight.down[r], weight.up[r]) for r in RANKS}
    yield "linear", None, lambda: torch.nn.functional.linear(x, plain, bias), None
    yield (
        "bnb",
        None,
        lambda: torch.ops.bitsandbytes.gemm_4bit(
            x, packed._qdata, params.orig_shape, params.scale, 64, "nf4", bias, None, None, None
        ),
        None,
    )
    yield "ours", None, lambda: linear(x, packed, bias), None
    if tokens == 1:
        # the other way for a few rows
        yield "unpacked", None, lambda: torch.nn.functional.linear(x, dequantize(packed, x.dtype), bias), None
        return
    for rank, pair in low_rank.items():
        yield f"lora_{rank}", None, lambda p=pair: linear(x, packed, bias, p), None
        yield (
            f"branch_{rank}",
            None,
            lambda p=pair: FourBitLayout._add_linear(p.of(x, bias), x, packed),
            None,
        )
    if has_float8():
        quantized, unpacked = fp8.quantize_rows(x), fp8.unpack_4bit_rows(*_plain_arguments(packed))
        yield "mm", None, lambda: fp8.scaled_mm(*quantized, *unpacked, bias), None
        yield "float8", None, lambda: linear(x, packed, bias, float8=True), None
    yield "chunks", None, _chunked(weight, x, bias), None
    yield "overlap", None, _overlapped(weight, x, bias), None


def _plain_arguments(packed) -> tuple:
    params = packed._params
    return packed._qdata, params.scale, *params.orig_shape, params.blocksize, params.quant_type


def _chunked(weight: Weight, x: torch.Tensor, bias: torch.Tensor) -> Callable[[], object]:
    """One scratch for all parts, so that it need not leave the cache."""
    from quantflux.quant_core.kernels import four_bit_triton

    rows, columns = weight.rows, weight.columns
    parts = max(1, round(rows * columns * 2 / CHUNK_BYTES))
    size = -(-rows // parts // 256) * 256
    scratch = torch.empty(size, columns, device="cuda", dtype=torch.bfloat16)
    y = torch.empty(x.shape[0], rows, device="cuda", dtype=torch.bfloat16)

    def run():
        for start in range(0, rows, size):
            stop = min(start + size, rows)
            part = scratch[: stop - start]
            words = weight.words[start * columns // 8 : stop * columns // 8]
            statistics = weight.statistics()[0][start * columns // 64 : stop * columns // 64], None, None, None
            four_bit_triton.unpack(words, statistics, weight.code, part, 64)
            torch.addmm(bias[start:stop], x, part.t(), out=y[:, start:stop])

    return run


def _overlapped(weight: Weight, x: torch.Tensor, bias: torch.Tensor) -> Callable[[], object]:
    """Multiplies by one scratch while the other is filled: the time of one layer among many."""
    from quantflux.quant_core.kernels import four_bit_triton

    scratch = [torch.zeros(weight.rows, weight.columns, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
    side = torch.cuda.Stream()

    def run():
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            four_bit_triton.unpack(weight.words, weight.statistics(), weight.code, scratch[1], 64)
        torch.nn.functional.linear(x, scratch[0], bias)
        torch.cuda.current_stream().wait_stream(side)

    return run


class Report:
    """Prints and keeps the records; knows the best time of each way at each shape."""

    def __init__(self, path: str | None, seconds: float):
        self._file = open(path, "w") if path else None
        self._end = time.monotonic() + seconds
        self.best: dict[tuple, float] = {}

    @property
    def late(self) -> bool:
        return time.monotonic() > self._end

    def write(self, **record):
        line = json.dumps(record)
        print(line, flush=True)
        if self._file:
            self._file.write(line + "\n")
            self._file.flush()

    def attempt(self, make: Callable[[], dict]):
        """Write what ``make`` gives, or why it fails."""
        try:
            self.write(**make())
        except Exception as error:
            self.write(error=f"{type(error).__name__}: {error}"[:300])

    def time_all(self, shape: tuple[int, int], tokens: int | None, ways: Iterator[tuple]):
        try:
            for way in ways:
                self.time(shape, tokens, *way)
        except Exception as error:
            self.write(rows=shape[0], columns=shape[1], tokens=tokens, error=f"{type(error).__name__}: {error}"[:300])

    def time(self, shape: tuple[int, int], tokens: int | None, way: str, launch, run, moved: int | None):
        if self.late:
            return
        described = dataclasses.asdict(launch) if dataclasses.is_dataclass(launch) else launch
        record = {"rows": shape[0], "columns": shape[1], "tokens": tokens, "way": way, "launch": described}
        try:
            ms = milliseconds(run)
        except Exception as error:
            torch.cuda.synchronize()
            self.write(**record, error=f"{type(error).__name__}: {error}"[:300])
            return
        key = (*shape, tokens, way)
        self.best[key] = min(ms, self.best.get(key, ms))
        speed = {} if moved is None else {"gb_s": round(moved / ms / 1e6)}
        self.write(**record, ms=round(ms, 4), **speed)

    def sums(self, name: str, shapes: dict[tuple[int, int, int], int]):
        """Of the best times, over the shapes as often as they come; what is not known of each shape is left out."""
        ways = {key[3] for key in self.best}
        total = {}
        for way in sorted(ways):
            times = []
            for (rows, columns, tokens), count in shapes.items():
                found = self.best.get((rows, columns, tokens, way), self.best.get((rows, columns, None, way)))
                if found is not None:
                    times.append(found * count)
            if len(times) == len(shapes):
                total[way] = round(sum(times), 2)
        self.write(sums=name, milliseconds=total)


def main():
    arguments = parse()
    import bitsandbytes
    import triton

    torch.manual_seed(0)
    report = Report(arguments.out, arguments.seconds)
    listed = launches(arguments.quick)
    report.write(
        machine=torch.cuda.get_device_name(),
        versions={"torch": torch.__version__, "triton": triton.__version__, "bitsandbytes": bitsandbytes.__version__},
    )
    report.write(way="copy", gb_s=copy_speed())

    weights = {}
    shapes = {(rows, columns) for rows, columns, _ in (*STEP, *FEW, *T5)}
    with torch.inference_mode():
        report.attempt(lambda: {"errors": errors()})
        for shape in sorted(shapes, key=lambda shape: -shape[0] * shape[1]):
            weights[shape] = weight = Weight(*shape)
            in_step = any(known[:2] == shape for known in STEP)
            if in_step or shape == (18432, 3072):
                report.attempt(lambda w=weight: {"rows": w.rows, "columns": w.columns, "checks": checks(w)})
            # the defaults first, so that every way is there if the time runs out
            for known in (STEP, FEW, T5):
                for rows, columns, tokens in known:
                    if (rows, columns) == shape:
                        report.time_all(shape, tokens, products(weight, tokens))
        for (rows, columns), weight in weights.items():
            if any(known[:2] == (rows, columns) for known in (*STEP, *T5)):
                report.time_all((rows, columns), None, moves(weight, listed))
        if has_float8():
            for rows, columns, tokens in (*STEP, *T5):
                report.time_all((rows, columns), tokens, quantizations(columns, tokens, listed))
    report.sums("step", STEP)
    report.sums("modulation", FEW)
    report.sums("t5, 512 tokens", T5)
    if report.late:
        report.write(note=f"stopped beginning new measurements after {arguments.seconds:g} s")


if __name__ == "__main__":
    main()
