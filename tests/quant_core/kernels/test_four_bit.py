"""Unpacking NF4 and FP4: the reference against bitsandbytes, the kernels against both, on a GPU or interpreted."""

import math

import pytest
import torch
from comfy_kitchen.tensor import QuantizedTensor
from interpreter import INTERPRETED, run_interpreted
from quantflux.quant_core import linear as products
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.kernels import triton_available
from quantflux.quant_core.kernels.four_bit import (
    FUSED_RANKS,
    can_unpack,
    code_table,
    unpack_4bit,
    unpack_4bit_reference,
)
from quantflux.quant_core.layouts import FourBitLayout, dequantize, quantize
from quantflux.quant_core.lora import LowRank
from registered import registered_module
from torch._subclasses.fake_tensor import FakeTensorMode

GPU = torch.cuda.is_available()
# the interpreter cuts bfloat16 off instead of rounding, and multiplies its bits as integers
EXACT_DTYPES = (torch.float16, torch.float32) if INTERPRETED else (torch.bfloat16, torch.float16, torch.float32)
HALF = torch.float16 if INTERPRETED else torch.bfloat16

CONFIGS = [
    QuantConfig("nf4"),
    QuantConfig("fp4"),
    QuantConfig("nf4", double_quant=True),
    QuantConfig("fp4", double_quant=True, blocksize=256),
    QuantConfig("nf4", blocksize=32),
]
# one that ends within a program and within a tile, one row, and one with several blocks of nested statistics
SHAPES = [(65, 384), (1, 256), (35, 1536)]


@pytest.fixture(params=CONFIGS, ids=QuantConfig.describe)
def config(request) -> QuantConfig:
    return request.param


@pytest.fixture
def with_kernels(monkeypatch):
    """The layout takes the kernels where they are interpreted, too."""
    module = registered_module("layouts.four_bit")
    monkeypatch.setattr(module, "triton_available", lambda device: True)


@pytest.mark.skipif(GPU or INTERPRETED, reason="the kernels are tested in this process")
def test_the_kernels_hold_in_the_interpreter(tmp_path):
    run_interpreted(__file__, tmp_path)


def arguments(weight, dtype) -> tuple:
    """Of the unpacking functions, without a low-rank update."""
    params = weight._params
    return (
        weight._qdata, params.scale, *params.orig_shape, params.blocksize, params.quant_type, dtype,
        params.absmax_8bit, params.absmax_code, params.absmax_offset,
    )  # fmt: skip


def packed(shape, config, generator, device="cpu") -> torch.Tensor:
    weight = torch.randn(shape, generator=generator) * 0.02
    return quantize(weight.bfloat16().to(device), config)


def update(shape, rank, generator, device="cpu", dtype=HALF) -> tuple[torch.Tensor, torch.Tensor]:
    up, down = torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator) * 0.01
    return up.to(device, dtype), down.to(device, dtype)


def by_bitsandbytes(weight, dtype) -> torch.Tensor:
    params = weight._params
    # as one row, in which blocks are what they are on every CPU: those of 256 run across rows of 384
    one_row = (math.prod(params.orig_shape),)
    return torch.ops.bitsandbytes.dequantize_4bit(
        weight._qdata, FourBitLayout.absmax(params), params.blocksize, params.quant_type, one_row, dtype
    ).view(params.orig_shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_reference_gives_the_bits_of_bitsandbytes(config, dtype, generator, device):
    weight = packed((65, 768), config, generator, device)
    assert torch.equal(unpack_4bit_reference(*arguments(weight, dtype)), by_bitsandbytes(weight, dtype))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", EXACT_DTYPES, ids=str)
def test_the_kernel_gives_the_bits_of_bitsandbytes(config, shape, dtype, generator, kernel_device):
    weight = packed(shape, config, generator, kernel_device)
    unpacked = unpack_4bit(*arguments(weight, dtype))
    assert unpacked.dtype == dtype
    assert torch.equal(unpacked, by_bitsandbytes(weight, dtype))


@pytest.mark.parametrize("gather", [True, False], ids=["table in shared memory", "table through L1"])
@pytest.mark.parametrize("words", [128, 1024])
def test_every_launch_writes_every_weight(words, gather, generator, kernel_device):
    from quantflux.quant_core.kernels import four_bit_triton as kernels

    weight = packed((65, 384), QuantConfig("nf4"), generator, kernel_device)
    params = weight._params
    out = torch.full((65, 384), torch.nan, device=kernel_device)
    statistics = params.scale, None, None, None
    code = code_table("nf4", weight._qdata.device)
    launch = kernels.Unpack(words, 4, gather)
    kernels.unpack(weight._qdata, statistics, code, out, params.blocksize, launch)
    assert torch.equal(out, by_bitsandbytes(weight, torch.float32))


@pytest.mark.parametrize("rank", FUSED_RANKS)
@pytest.mark.parametrize("shape", SHAPES[:2], ids=str)
def test_the_update_is_added_before_the_only_rounding(shape, rank, generator, kernel_device):
    weight = packed(shape, QuantConfig("nf4", double_quant=True), generator, kernel_device)
    up, down = update(shape, rank, generator, kernel_device)
    expected = unpack_4bit_reference(*arguments(weight, torch.float32), up, down)
    exact = unpack_4bit(*arguments(weight, torch.float32), up, down)
    assert (exact - expected).abs().max() <= 2e-6 * expected.abs().max()
    # sums of another order may end on the other side of a rounding bound
    half = unpack_4bit(*arguments(weight, HALF), up, down)
    assert (half.float() - expected).abs().max() <= 1.01 * (expected.to(HALF).float() - expected).abs().max()


@pytest.mark.parametrize("rows", [60])
def test_a_lora_on_many_rows_of_input_is_unpacked_with_the_weight(rows, generator, kernel_device, with_kernels):
    shape = (65, 384)
    weight = packed(shape, QuantConfig("nf4"), generator, kernel_device)
    low_rank = LowRank(*reversed(update(shape, 32, generator, kernel_device)))
    x = torch.randn(2, rows // 2, shape[1], generator=generator).to(kernel_device, HALF)
    bias = torch.randn(shape[0], generator=generator).to(kernel_device, HALF)
    with_update = unpack_4bit_reference(*arguments(weight, torch.float32), low_rank.up, low_rank.down)
    expected = x.float() @ with_update.T + bias.float()
    y = products.linear(x, weight, bias, low_rank)
    assert (y.float() - expected).norm() / expected.norm() < 4e-3
    # taken away, it leaves nothing
    base = by_bitsandbytes(weight, HALF)
    assert torch.equal(products.linear(x, weight, bias), torch.nn.functional.linear(x, base, bias))


@pytest.mark.parametrize("rank", [2, 256])
def test_other_ranks_stay_a_branch(rank, generator, kernel_device, with_kernels):
    shape = (64, 256)
    weight = packed(shape, QuantConfig("nf4"), generator, kernel_device)
    low_rank = LowRank(*reversed(update(shape, rank, generator, kernel_device)))
    x = torch.randn(100, shape[1], generator=generator).to(kernel_device, HALF)
    expected = x.float() @ (dequantize(weight, torch.float32) + low_rank.up.float() @ low_rank.down.float()).T
    assert (products.linear(x, weight, None, low_rank).float() - expected).norm() / expected.norm() < 8e-3


def test_the_operator_has_the_schema_and_shapes_that_it_says(generator, kernel_device):
    weight = packed((8, 256), QuantConfig("nf4", double_quant=True), generator, kernel_device)
    tests = ("test_schema", "test_faketensor")
    op = torch.ops.quantflux.unpack_4bit.default
    torch.library.opcheck(op, arguments(weight, torch.float16), test_utils=tests)
    update_of_rank_16 = update((8, 256), 16, generator, kernel_device)
    torch.library.opcheck(op, (*arguments(weight, torch.float16), *update_of_rank_16), test_utils=tests)


@pytest.mark.parametrize("with_lora", [False, True], ids=["plain", "LoRA"])
def test_a_product_compiles_in_one_graph(with_lora, generator, kernel_device, with_kernels):
    shape = (64, 256)
    weight = packed(shape, QuantConfig("nf4"), generator, kernel_device)
    low_rank = LowRank(*reversed(update(shape, 16, generator, kernel_device))) if with_lora else None
    x = torch.randn(100, shape[1], generator=generator).to(kernel_device, HALF)
    torch._dynamo.reset()
    compiled = torch.compile(products.linear, fullgraph=True, backend="aot_eager")
    with torch.inference_mode():
        ours, eager = compiled(x, weight, None, low_rank), products.linear(x, weight, None, low_rank)
    # the LoRA is added to the weight in the one and to the output in the other
    assert (ours - eager).float().norm() / eager.float().norm() <= (2e-3 if with_lora else 0)


def test_a_lora_of_one_hundredth_of_the_weight_keeps_its_whole_effect(generator):
    shape = (512, 1024)
    weight = packed(shape, QuantConfig("nf4"), generator)
    up, down = update(shape, 16, generator, dtype=torch.bfloat16)
    lora = up.float() @ down.float()
    size = 0.01 * dequantize(weight, torch.float32).norm() / lora.norm()
    up, lora = (up.float() * size).bfloat16(), lora * size
    x = torch.randn(300, shape[1], generator=generator).bfloat16().float()

    base = unpack_4bit_reference(*arguments(weight, torch.bfloat16)).float()
    fused = unpack_4bit_reference(*arguments(weight, torch.bfloat16), up, down).float()
    effect, wanted = x @ (fused - base).T, x @ lora.T
    kept = (effect * wanted).sum() / wanted.square().sum()
    assert kept == pytest.approx(1, abs=0.01)
    exact = x @ (dequantize(weight, torch.float32) + lora).T
    # what rounding the unpacked weight to bfloat16 costs without a LoRA, too
    assert (x @ fused.T - exact).norm() / exact.norm() < 2e-3


def test_without_the_kernels_the_product_and_the_lora_are_those_of_bitsandbytes(generator):
    shape = (96, 256)
    weight = packed(shape, QuantConfig("nf4"), generator)
    low_rank = LowRank(*reversed(update(shape, 16, generator, dtype=torch.bfloat16)))
    bias = torch.randn(shape[0], generator=generator).bfloat16()
    assert not triton_available(torch.device("cpu"))
    for rows in (3, 100):
        x = torch.randn(rows, shape[1], generator=generator).bfloat16()
        plain = torch.ops.bitsandbytes.gemm_4bit(x, weight._qdata, shape, weight._params.scale, 64, "nf4", bias)
        assert torch.equal(products.linear(x, weight, bias), plain)
        y = low_rank.of(x, bias)
        if rows == 3:
            y += products.linear(x, weight)
        else:
            y.addmm_(x, dequantize(weight, torch.bfloat16).T)
        assert torch.equal(products.linear(x, weight, bias, low_rank), y)


def test_only_whole_rows_of_blocks_are_unpacked_by_the_kernel():
    assert can_unpack((3, 128), 64)
    assert not can_unpack((64, 96), 64)
    assert not can_unpack((2**16, 2**15), 64)


@pytest.mark.parametrize("rank", [None, 32])
def test_a_trace_for_a_gpu_needs_no_gpu(rank, with_kernels, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with FakeTensorMode(), torch.device("cuda"):
        params = FourBitLayout.Params(
            scale=torch.empty(256), orig_dtype=torch.bfloat16, orig_shape=(64, 256), quant_type="nf4", blocksize=64
        )
        weight = QuantizedTensor(torch.empty(8192, 1, dtype=torch.uint8), FourBitLayout.NAME, params)
        x = torch.empty(2, 100, 256, dtype=torch.bfloat16)
        y = products.linear(x, weight, None, rank and LowRank(x.new_empty(rank, 256), x.new_empty(64, rank)))
    assert (y.shape, y.dtype, y.device.type) == ((2, 100, 64), torch.bfloat16, "cuda")
