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

import torch
from four_bit_checks import checks, errors
from four_bit_report import Report, copy_speed
from four_bit_ways import Weight, has_float8, launches, moves, products, quantizations

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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", help="a file for the JSON lines, which are printed anyway")
    parser.add_argument("--seconds", type=float, default=100, help="begin nothing new after so many")
    parser.add_argument("--quick", action="store_true", help="only the launches that are the default")
    return parser.parse_args()


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
