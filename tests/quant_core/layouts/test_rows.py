"""Stacking, slicing and swapping packed rows, at the shapes of FLUX's real layers: one block of each type."""

import pytest
import random_packed
import torch
from quantflux.quant_core.config import BLOCKSIZES, QuantConfig
from quantflux.quant_core.layouts import (
    concatenate,
    dequantize,
    is_packed,
    nbytes,
    plain_tensors,
    quantize,
    rows,
    swap_halves,
)
from random_packed import FORMATS, weight_and_values

HIDDEN = 3072
MLP = 4 * HIDDEN
# native module -> rows of each diffusers part, columns
LAYERS = {
    "double qkv": ((HIDDEN, HIDDEN, HIDDEN), HIDDEN),
    "double proj": ((HIDDEN,), HIDDEN),
    "double mlp.0": ((MLP,), HIDDEN),
    "double mlp.2": ((HIDDEN,), MLP),
    "double mod": ((6 * HIDDEN,), HIDDEN),
    "single linear1": ((HIDDEN, HIDDEN, HIDDEN, MLP), HIDDEN),
    "single linear2": ((HIDDEN,), HIDDEN + MLP),
    "adaLN": ((2 * HIDDEN,), HIDDEN),
}


@pytest.fixture(scope="module")
def random_bytes():
    return random_packed.random_bytes()


def same_values(packed: torch.Tensor | None, values: torch.Tensor) -> bool:
    return is_packed(packed) and torch.equal(dequantize(packed, torch.bfloat16), values)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("layer", [name for name, (parts, _) in LAYERS.items() if len(parts) > 1])
def test_stacked_parts_of_a_real_layer_are_the_stacked_values_and_come_apart_again(
    layer, form, generator, random_bytes
):
    heights, columns = LAYERS[layer]
    parts = [weight_and_values((height, columns), form, generator, random_bytes) for height in heights]
    whole = concatenate([packed for packed, _ in parts])
    assert whole.shape == (sum(heights), columns)
    assert same_values(whole, torch.cat([values for _, values in parts]))
    start = 0
    for (packed, values), height in zip(parts, heights, strict=True):
        again = rows(whole, start, start + height)
        assert same_values(again, values)
        assert torch.equal(plain_tensors(again)[0], plain_tensors(packed)[0])
        start += height


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("layer", [name for name, (parts, _) in LAYERS.items() if len(parts) == 1])
def test_slices_of_a_real_layer_are_slices_of_its_values_and_stack_to_it_again(layer, form, generator, random_bytes):
    (height,), columns = LAYERS[layer]
    packed, values = weight_and_values((height, columns), form, generator, random_bytes)
    # thirds, as a LoRA for q, k or v sees them; a third of a nested weight begins within a block of statistics
    cuts = [0, height // 3, 2 * height // 3, height]
    slices = [rows(packed, start, stop) for start, stop in zip(cuts, cuts[1:], strict=False)]
    for part, start, stop in zip(slices, cuts, cuts[1:], strict=False):
        assert same_values(part, values[start:stop])
    again = concatenate(slices)
    assert torch.equal(plain_tensors(again)[0], plain_tensors(packed)[0])
    assert same_values(again, values)


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_the_halves_of_the_real_adaln_trade_places_and_come_back(form, generator, random_bytes):
    (height,), columns = LAYERS["adaLN"]
    packed, values = weight_and_values((height, columns), form, generator, random_bytes)
    swapped = swap_halves(packed)
    assert same_values(swapped, torch.cat((values[height // 2 :], values[: height // 2])))
    assert not torch.equal(plain_tensors(swapped)[0], plain_tensors(packed)[0])
    assert torch.equal(plain_tensors(swap_halves(swapped))[0], plain_tensors(packed)[0])
    assert same_values(swap_halves(swapped), values)


@pytest.mark.parametrize("blocksize", BLOCKSIZES)
@pytest.mark.parametrize("double_quant", [False, True], ids=["plain", "nested"])
@pytest.mark.parametrize("precision", ["nf4", "fp4"])
def test_weights_that_were_quantized_stack_slice_and_swap_at_every_blocksize(
    precision, double_quant, blocksize, generator
):
    config = QuantConfig(precision, blocksize=blocksize, double_quant=double_quant)
    parts = [
        quantize(torch.randn(height, 256, generator=generator).bfloat16() * size, config)
        for height, size in ((64, 1), (128, 3), (32, 0.1))
    ]
    values = [dequantize(part, torch.bfloat16) for part in parts]
    whole = concatenate(parts)
    assert same_values(whole, torch.cat(values))
    assert same_values(rows(whole, 64, 192), values[1])
    assert same_values(swap_halves(parts[1]), torch.cat((values[1][64:], values[1][:64])))


def test_nested_rows_stay_nested_only_where_they_begin_at_a_block_of_statistics(generator):
    packed = quantize(torch.randn(256, 256, generator=generator), QuantConfig("nf4", double_quant=True))
    values = dequantize(packed, torch.bfloat16)
    # 64 rows of 256 in blocks of 64 are 256 absmax: one block of statistics
    for start, nested in ((64, True), (32, False)):
        part = rows(packed, start, 128)
        assert part._params.nested is nested
        assert same_values(part, values[start:128])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (QuantConfig("nf4"), QuantConfig("fp4")),
        (QuantConfig("nf4"), QuantConfig("nf4", blocksize=128)),
        (QuantConfig("nf4"), QuantConfig("int8")),
        (QuantConfig("nf4"), QuantConfig("none")),
        (QuantConfig("int8", int8_threshold=6.0), QuantConfig("int8", int8_threshold=0.0)),
    ],
    ids=lambda config: config.describe(),
)
def test_weights_that_are_packed_differently_are_not_stacked_but_given_back(one, other, generator):
    weight = torch.randn(64, 256, generator=generator)
    assert concatenate([quantize(weight, one), quantize(weight, other)]) is None
    assert concatenate([quantize(weight, other), quantize(weight, one)]) is None


def test_nested_and_plain_statistics_are_stacked_exactly(generator):
    weight = torch.randn(64, 256, generator=generator).bfloat16()
    parts = [quantize(weight, QuantConfig("nf4", double_quant=nested)) for nested in (True, False)]
    assert same_values(concatenate(parts), torch.cat([dequantize(part, torch.bfloat16) for part in parts]))


def test_a_block_is_never_cut(generator):
    # 3 rows of 32 are one and a half blocks of 64
    odd = quantize(torch.randn(3, 32, generator=generator), QuantConfig("nf4"))
    even = quantize(torch.randn(4, 32, generator=generator), QuantConfig("nf4"))
    assert concatenate([odd, even]) is None
    assert same_values(concatenate([even, odd]), torch.cat([dequantize(w, torch.bfloat16) for w in (even, odd)]))
    assert rows(even, 1, 4) is None
    assert rows(even, 0, 3) is None
    # where nothing follows, the last block may be half full
    assert same_values(rows(odd, 2, 3), dequantize(odd, torch.bfloat16)[2:])
    assert swap_halves(quantize(torch.randn(2, 32, generator=generator), QuantConfig("nf4"))) is None


def test_a_stack_of_plain_weights_is_plain(generator):
    weight = torch.randn(6, 4, generator=generator)
    assert torch.equal(concatenate([weight, weight[:2]]), torch.cat((weight, weight[:2])))
    assert torch.equal(swap_halves(weight), torch.cat((weight[3:], weight[:3])))


def test_stacking_expands_nested_statistics_and_nothing_else(generator):
    weight = torch.randn(64, 256, generator=generator)
    plain, nested = (quantize(weight, QuantConfig("nf4", double_quant=double)) for double in (False, True))
    assert nbytes(concatenate([nested, nested])) == nbytes(concatenate([plain, plain])) == 2 * nbytes(plain)
    eight = quantize(weight, QuantConfig("int8"))
    assert nbytes(concatenate([eight, eight])) == 2 * nbytes(eight)
