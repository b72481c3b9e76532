"""Packed before, or packed while loading: the same model."""

import json

import pytest
import torch
from format_files import DIFFUSERS_WEIGHTS, pack_4bit
from loading_formats import (
    BY_DIFFUSERS,
    NESTED,
    loaded_as_planned,
    packed_modules,
    require_same_tensors,
    saved,
)
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import FourBitLayout, plain_tensors
from safetensors.torch import load_file


@pytest.mark.parametrize(
    "config", [config for config in BY_DIFFUSERS.values() if not config.double_quant], ids=QuantConfig.describe
)
def test_a_packed_folder_is_the_same_model_as_the_16_bit_file_packed_while_loading(
    folder_of_diffusers, flux_file, config
):
    folder, _ = folder_of_diffusers(config)
    require_same_tensors(loaded_as_planned(folder), loaded_as_planned(flux_file, config))


def test_a_nested_packed_folder_has_the_nibbles_of_packing_while_loading_and_its_own_absmax_expanded(
    folder_of_diffusers, flux_file
):
    folder, _ = folder_of_diffusers(NESTED)
    loaded, now = loaded_as_planned(folder), loaded_as_planned(flux_file, NESTED)
    for module in packed_modules(now):
        ours, theirs = loaded[f"{module}.weight"], now[f"{module}.weight"]
        assert torch.equal(plain_tensors(ours)[0], plain_tensors(theirs)[0]), module
        if ours._params.nested:  # a module of one part, taken over as it is
            require_same_tensors({module: ours}, {module: theirs})
    stored = load_file(folder / DIFFUSERS_WEIGHTS)

    def expanded(part):
        name = f"transformer_blocks.0.attn.{part}.weight"
        state = json.loads(bytes(stored[f"{name}.quant_state.bitsandbytes__nf4"].tolist()))
        inner = stored[f"{name}.nested_quant_map"][stored[f"{name}.absmax"].long()]
        scales = stored[f"{name}.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: len(inner)]
        return inner * scales + state["nested_offset"]

    absmax = torch.cat([expanded(part) for part in ("to_q", "to_k", "to_v")])
    assert torch.equal(FourBitLayout.absmax(loaded["double_blocks.0.img_attn.qkv.weight"]._params), absmax)


@pytest.mark.parametrize(
    "config",
    [QuantConfig("nf4"), QuantConfig("fp4", blocksize=256), NESTED, QuantConfig("fp4", double_quant=True)],
    ids=QuantConfig.describe,
)
def test_a_packed_single_file_is_the_same_model_as_the_16_bit_file_packed_while_loading(
    tmp_path, native, linears, flux_file, config
):
    stored, _ = pack_4bit(
        native, linears, quant_type=config.precision, blocksize=config.blocksize, double_quant=config.double_quant
    )
    require_same_tensors(loaded_as_planned(saved(tmp_path, stored)), loaded_as_planned(flux_file, config))
