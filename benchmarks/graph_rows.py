"""Times what quantizes a product's input in a compiled graph, in several ways, at FLUX.1-dev's sizes.

    python benchmarks/graph_rows.py --out graph_rows.jsonl

Prints JSON lines. Each graph is what FLUX has before a product, from the last one on, and ends with 8-bit codes
and a scale for each token. Needs a CUDA GPU and `quantflux` installed, no ComfyUI. ``way``:

- kernel: inductor makes the input, our kernel quantizes it.
- joined: inductor quantizes it together with what makes it.
- written: the same, of an input that inductor has to write first, so that it is made once.
- input: inductor makes the input; nothing quantizes it.

``gelu``: torch's, with a tanh, or ours, with a sigmoid. ``error``: of codes times scales, against the input that is
made without compiling, relative; rounding to 8 bit is most of it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import torch
from four_bit_report import Report, milliseconds

TOKENS, HIDDEN, HEADS = 4352, 3072, 24


def normed(gelu: Callable, hidden: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Before qkv, ``mlp.0`` and ``linear1``."""
    return torch.nn.functional.layer_norm(hidden, hidden.shape[-1:], eps=1e-6) * (1 + scale) + shift


def activated(gelu: Callable, hidden: torch.Tensor) -> torch.Tensor:
    """Before ``mlp.2``."""
    return gelu(hidden)


def joined(gelu: Callable, attention: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """Before ``linear2``: the heads side by side, and the activated rest of what ``linear1`` gave."""
    heads = attention.transpose(1, 2).reshape(*hidden.shape[:-1], -1)
    return torch.cat((heads, gelu(hidden[..., 3 * HIDDEN :])), 2)


def inputs(kind: Callable, device: torch.device) -> tuple[torch.Tensor, ...]:
    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).bfloat16()

    if kind is normed:
        return random(1, TOKENS, HIDDEN), random(1, 1, HIDDEN), random(1, 1, HIDDEN)
    if kind is activated:
        return (random(1, TOKENS, 4 * HIDDEN),)
    return random(1, HEADS, TOKENS, HIDDEN // HEADS), random(1, TOKENS, 7 * HIDDEN)


def quantizer(form: str, way: str) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """From rows to codes and scales, whose product is the rows."""
    from quantflux.quant_core.kernels import fp8, fp8_triton, int8_quantize, int8_reference

    def float8_kernel(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        codes = torch.empty(rows.shape, dtype=torch.float8_e4m3fn, device=rows.device)
        scale = torch.empty(rows.shape[0], 1, device=rows.device)
        fp8_triton.quantize_rows(rows, codes, scale)
        return codes, scale

    if way == "input":
        return lambda rows: (rows,)
    if form == "float8":
        return float8_kernel if way == "kernel" else fp8.quantize_rows_reference
    if way != "kernel":
        return lambda rows: int8_reference.quantize_rows_reference(rows)[:2]
    # the weight is asked for its number of rows alone
    return lambda rows: int8_quantize.quantize_rows(rows, rows, rows, 0.0)[:2]


def graph(kind: Callable, form: str, way: str, gelu: Callable) -> Callable:
    quantize = quantizer(form, way)

    def run(*arguments):
        x = kind(gelu, *arguments)
        x = x.reshape(-1, x.shape[-1])
        if way == "written":
            x = x.as_strided(x.shape, x.stride())
        return quantize(x)

    return torch.compile(run, fullgraph=True)


def error(outputs: tuple[torch.Tensor, ...], x: torch.Tensor, form: str) -> float:
    made = outputs[0].float()
    if len(outputs) > 1:
        made *= outputs[1].view(-1, 1) / (127 if form == "int8" else 1)
    x = x.reshape(made.shape).float()
    return ((made - x).norm() / x.norm()).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="a file for the JSON lines, which are printed anyway")
    parser.add_argument("--seconds", type=float, default=100, help="begin nothing new after so many")
    arguments = parser.parse_args()
    import triton
    from quantflux.quant_core.kernels import int8_quantize
    from quantflux.quant_core.kernels.gelu import gelu_by_sigmoid, gelu_reference

    torch.manual_seed(0)
    report = Report(arguments.out, arguments.seconds)
    report.write(
        machine=torch.cuda.get_device_name(), versions={"torch": torch.__version__, "triton": triton.__version__}
    )
    # else short rows would not reach the kernels
    int8_quantize.IN_GRAPH_COLUMNS = 0
    gelus = {"torch's": gelu_reference, "ours": gelu_by_sigmoid}
    ways = itertools.product(gelus, ("kernel", "joined", "written", "input"), ("float8", "int8"))
    device = torch.device("cuda")
    with torch.inference_mode():
        for gelu, way, form in ways:
            for kind in (joined, activated, normed):
                if report.late or (way == "input" and form == "int8") or (kind is normed and gelu == "ours"):
                    continue

                def measure(kind=kind, form=form, way=way, gelu=gelu) -> dict:
                    torch._dynamo.reset()
                    given = inputs(kind, device)
                    run = graph(kind, form, way, gelus[gelu])
                    record = {"before": kind.__name__, "form": form, "way": way, "gelu": gelu}
                    record["error"] = error(run(*given), kind(gelu_reference, *given), form)
                    return record | {"ms": milliseconds(lambda: run(*given))}

                report.attempt(measure)


if __name__ == "__main__":
    main()
