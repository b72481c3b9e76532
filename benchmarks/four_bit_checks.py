"""Whether the 4-bit kernels give bitsandbytes' bits, and how far float8 and LoRAs are from exact products."""

from __future__ import annotations

import torch
from four_bit_ways import RANKS, Weight, has_float8


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
