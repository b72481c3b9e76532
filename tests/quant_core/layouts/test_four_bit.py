import bitsandbytes.functional as bnb
import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from dequantized import dequantized_4bit
from quantflux.quant_core.config import BLOCKSIZES, QuantConfig
from quantflux.quant_core.kernels.four_bit import unpacked_codes
from quantflux.quant_core.layouts import dequantize, nbytes, plain_tensors, quantize
from quantflux.quant_core.linear import linear
from registered import registered_module

CONFIGS = [
    QuantConfig("nf4"),
    QuantConfig("fp4"),
    QuantConfig("nf4", double_quant=True),
    QuantConfig("fp4", double_quant=True),
    *(QuantConfig("nf4", blocksize=blocksize) for blocksize in BLOCKSIZES if blocksize != 64),
]


@pytest.fixture(params=CONFIGS, ids=QuantConfig.describe)
def config(request) -> QuantConfig:
    return request.param


@pytest.fixture
def weight(generator, device):
    return (torch.randn(96, 4096, generator=generator) * 0.02).to(torch.bfloat16).to(device)


def bitsandbytes_state(weight, config):
    return bnb.quantize_4bit(
        weight, blocksize=config.blocksize, compress_statistics=config.double_quant, quant_type=config.precision
    )


def test_packed_bytes_and_state_dict_are_those_of_bitsandbytes(weight, config):
    ours = quantize(weight, config).state_dict("weight")
    packed, state = bitsandbytes_state(weight, config)
    theirs = {"weight": packed} | {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert torch.equal(ours[name].cpu(), tensor.cpu()), name


def test_a_cpu_packs_in_pieces_to_the_same_bits_and_can_be_stopped_between_them(generator, config, monkeypatch):
    monkeypatch.setattr(registered_module("layouts.four_bit"), "CPU_PIECE", 8192)
    # the last piece is shorter, and its last block too
    weight = torch.randn(33, 1001, generator=generator).to(torch.bfloat16)
    pauses = []
    ours = quantize(weight, config, lambda: pauses.append(1)).state_dict("weight")
    assert len(pauses) == 5
    packed, state = bitsandbytes_state(weight, config)
    theirs = {"weight": packed} | {f"weight.{name}": value for name, value in state.as_dict(packed=True).items()}
    for name, tensor in theirs.items():
        assert torch.equal(ours[name], tensor), name

    def stop():
        if pauses.pop() and len(pauses) == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        quantize(weight, config, stop)
    assert len(pauses) == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dequantizing_gives_what_bitsandbytes_gives(weight, config, dtype):
    packed, state = bitsandbytes_state(weight, config)
    state.dtype = dtype
    assert torch.equal(dequantize(quantize(weight, config), dtype), dequantized_4bit(packed, state))


@pytest.mark.parametrize("columns", [64, 192, 256])
@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_blocks_that_run_across_rows_are_dequantized_with_their_own_absmax(
    quant_type, blocksize, columns, generator, device
):
    weight = torch.randn(224, columns, generator=generator, dtype=torch.bfloat16).to(device)
    packed = quantize(weight, QuantConfig(quant_type, blocksize=blocksize))
    codes = unpacked_codes(packed._qdata, weight.numel(), quant_type)
    expected = codes * packed._params.scale.repeat_interleave(blocksize)[: weight.numel()]
    assert torch.equal(dequantize(packed, torch.float32), expected.view(weight.shape))


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_the_product_is_that_of_linear4bit(weight, config, rows, generator, device):
    theirs = Linear4bit(4096, 96, compute_dtype=torch.bfloat16, device="meta")
    theirs.support_avx512bf16_for_cpu = False  # it would repack its weight in place at the first product
    theirs.bias = torch.nn.Parameter(torch.randn(96, generator=generator).to(torch.bfloat16).to(device))
    theirs.weight = Params4bit(
        weight.clone(),
        requires_grad=False,
        blocksize=config.blocksize,
        compress_statistics=config.double_quant,
        quant_type=config.precision,
    ).to(device)
    x = torch.randn(2, rows, 4096, generator=generator).to(torch.bfloat16).to(device)
    with torch.no_grad():
        assert torch.equal(linear(x, quantize(weight, config), theirs.bias), theirs.eval()(x))


def test_the_product_is_near_the_one_with_the_dequantized_weight(weight, config, generator, device):
    packed = quantize(weight, config)
    x = torch.randn(5, 4096, generator=generator).to(device)
    expected = x.double() @ dequantize(packed, torch.float32).double().T
    error = (linear(x, packed).double() - expected).norm() / expected.norm()
    assert error < 1e-5


@pytest.mark.filterwarnings("error")
def test_blocks_that_run_across_rows_multiply_without_a_warning(generator, device):
    weight = torch.randn(64, 96, generator=generator).to(device)
    packed = quantize(weight, QuantConfig("nf4"))
    x = torch.randn(3, 96, generator=generator).to(device)
    torch.testing.assert_close(linear(x, packed), x @ dequantize(packed, torch.float32).T)


def test_errors_on_gaussian_weights_are_those_of_the_formats(generator):
    weight = torch.randn(512, 4096, generator=generator)
    expected = {"nf4": 0.092, "fp4": 0.122}  # facts of the formats at blocksize 64
    for precision, error in expected.items():
        packed = quantize(weight, QuantConfig(precision))
        found = (dequantize(packed, torch.float32) - weight).norm() / weight.norm()
        assert found == pytest.approx(error, abs=0.002)


def test_moving_takes_the_statistics_along_and_changes_nothing(weight, config, device):
    packed = quantize(weight, config)
    there_and_back = packed.to("cpu").to(device)
    for part, original in zip(plain_tensors(there_and_back), plain_tensors(packed), strict=True):
        assert part.device.type == device.type
        assert torch.equal(part, original)
    assert nbytes(packed) == nbytes(there_and_back)
    assert all(part.device.type == "meta" for part in plain_tensors(packed.to("meta")))


def test_a_packed_weight_reports_the_shape_and_dtype_of_the_weight(weight, config):
    packed = torch.nn.Parameter(quantize(weight, config), requires_grad=False)
    assert packed.shape == weight.shape
    assert packed.dtype == weight.dtype
