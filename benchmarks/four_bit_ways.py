"""What is timed of the 4-bit kernels: each way by name, with the launch and a function that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

RANKS = (32, 128)
CHUNK_BYTES = 24 * 2**20  # of unpacked weight: half of an H100's L2 cache


def has_float8() -> bool:
    return torch.cuda.get_device_capability() >= (8, 9)


class Weight:
    """A packed weight, plain and nested, with what the kernels are given of it."""

    def __init__(self, rows: int, columns: int):
        from quantflux.quant_core.config import QuantConfig
        from quantflux.quant_core.kernels.four_bit import code_table
        from quantflux.quant_core.layouts import quantize

        self.rows, self.columns = rows, columns
        weight = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) * 0.02
        self.packed = quantize(weight, QuantConfig("nf4"))
        self.nested = quantize(weight, QuantConfig("nf4", double_quant=True))
        self.data = self.packed._qdata
        self.code = code_table("nf4", self.data.device)
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
            data = weight.data if not nested else weight.nested._qdata
            yield (
                way,
                launch,
                lambda d=data, s=statistics, n=launch: four_bit_triton.unpack(d, s, weight.code, out, 64, n),
                weight.bytes(2),
            )
    for launch in listed["add"]:
        for rank in RANKS:
            yield (
                f"add_{rank}",
                launch,
                lambda r=rank, n=launch: four_bit_triton.unpack_add(
                    weight.data, weight.statistics(), weight.code, weight.up[r], weight.down[r], out, 64, n
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
                    weight.data, weight.statistics(), weight.code, eighth, scale, 64, n
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
            data = weight.data[start * columns // 2 : stop * columns // 2]
            statistics = weight.statistics()[0][start * columns // 64 : stop * columns // 64], None, None, None
            four_bit_triton.unpack(data, statistics, weight.code, part, 64)
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
            four_bit_triton.unpack(weight.data, weight.statistics(), weight.code, scratch[1], 64)
        torch.nn.functional.linear(x, scratch[0], bias)
        torch.cuda.current_stream().wait_stream(side)

    return run
