"""What a plan counts for the size of the picture, and for the kernels."""

import pytest
import torch
from planned import MIB, a_card, planned, row
from quantflux.quant_core.config import FLOAT8, QuantConfig
from quantflux.quant_core.plan.activations import Tokens
from quantflux.quant_core.plan.scratch import int8_scratch


def test_activations_grow_with_the_picture_and_the_batch(full_size):
    def activations(*size):
        return row(planned(full_size, size=size), "16-bit").sampling.activations

    assert activations(1024, 1024, 2) == pytest.approx(2 * activations(1024, 1024, 1), rel=1e-6)
    tokens = Tokens.of(2048, 1024, 1).all / Tokens.of(1024, 1024, 1).all
    assert activations(2048, 1024, 1) == pytest.approx(tokens * activations(1024, 1024, 1), rel=0.01)


def test_small_pictures_are_limited_by_the_unpacked_weight(full_size):
    turn = row(planned(full_size, size=(256, 256, 1)), "nf4").sampling
    assert turn.moment == "single block, linear1"
    assert turn.scratch == 2 * 21504 * 3072 + 32 * MIB


def test_in_float8_weights_and_inputs_take_a_byte_each_number(full_size):
    config = QuantConfig("nf4", compute_dtype=FLOAT8)
    found = planned(full_size, a_card(78.66, fused=True), config, (256, 256, 1))
    turn = row(found, config.describe()).sampling
    assert turn.moment == "single block, linear1"
    rows = Tokens.of(256, 256, 1).all
    assert turn.scratch == (21504 + rows) * (3072 + 4) + 32 * MIB
    # without our kernels the products are bitsandbytes', in 16 bit
    plain = row(planned(full_size, None, config, (256, 256, 1)), config.describe()).sampling
    assert plain.scratch == 2 * 21504 * 3072 + 32 * MIB


def test_odd_sizes_are_rounded_as_the_host_rounds_them():
    # 1000 pixels are 125 of a latent, which is padded to 126
    assert Tokens.of(1000, 1000, 1).image == 63 * 63


def test_int8_needs_room_to_look_for_outliers_where_the_input_is_wide():
    assert int8_scratch((64, 4096), 100, 6.0, torch.bfloat16) > int8_scratch((64, 4096), 100, 0.0, torch.bfloat16)
    assert int8_scratch((4096, 64), 100, 6.0, torch.bfloat16) == int8_scratch((4096, 64), 100, 0.0, torch.bfloat16)


def test_our_kernels_need_less_for_int8(full_size):
    ours = row(planned(full_size, a_card(78.66, fused=True)), "int8 threshold 6").sampling
    assert ours.peak < row(planned(full_size), "int8 threshold 6").sampling.peak - 300 * MIB
