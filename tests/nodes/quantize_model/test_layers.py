"""Quantize Model packs the linear layers that the config does not skip, and keeps the rest as it is."""

import other_dits
import pytest
import torch
from other_dits import MAKERS, denoised, loaded_by_host
from quantflux.nodes.host.operations import PackedLinear, packed_linears
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import is_packed, nbytes
from quantize_node import linears_of, packed_names, quantize_model

# the last block has no context mlp
FC1 = {"joint_blocks.0.x_block.mlp.fc1", "joint_blocks.0.context_block.mlp.fc1", "joint_blocks.1.x_block.mlp.fc1"}


@pytest.mark.parametrize(
    ("name", "entries", "skipped"),
    [
        ("SD3", ("proj_out",), {"final_layer.linear"}),
        ("SD3", ("final_layer.linear",), {"final_layer.linear"}),
        ("SD3", ("transformer_blocks.0.attn.to_q",), {"joint_blocks.0.x_block.attn.qkv"}),
        ("SD3", ("joint_blocks.*.mlp.fc1", "nothing"), FC1),
        ("Wan", ("head",), {"head.head"}),
        ("U-Net", ("time_embedding.linear_1",), {"time_embed.0"}),
    ],
)
def test_skipped_modules_stay_as_they_are(name, entries, skipped, caplog):
    stock = MAKERS[name]()
    everything = linears_of(stock)
    assert skipped <= everything
    packed = quantize_model(stock, QuantConfig("nf4", skip_modules=entries))
    assert packed_names(packed) == everything - skipped
    for module in skipped:
        ours, theirs = (one.model.diffusion_model.get_submodule(module) for one in (packed, stock))
        assert type(ours) is type(theirs) and torch.equal(ours.weight, theirs.weight)
        assert ours.weight.data_ptr() != theirs.weight.data_ptr()
    assert ("'nothing' matches no linear module" in caplog.text) == ("nothing" in entries)


def test_layers_that_would_not_become_smaller_and_foreign_kinds_stay():
    stock = MAKERS["SD3"]()
    transformer = stock.model.diffusion_model
    transformer.tiny = torch.nn.Linear(4, 2)
    transformer.plain = torch.nn.Linear(64, 64)
    transformer.attention = torch.nn.MultiheadAttention(64, 2)
    packed = quantize_model(stock, QuantConfig("int8"))
    found = packed.model.diffusion_model
    assert type(found.tiny) is torch.nn.Linear and isinstance(found.plain, PackedLinear)
    assert is_packed(found.plain.weight)
    # its weight is used without its forward
    assert type(found.attention.out_proj) is type(transformer.attention.out_proj)


def test_the_host_counts_the_bytes_that_are_held():
    packed = quantize_model(MAKERS["SD3"]())
    held = sum(nbytes(tensor) for tensor in packed.model.parameters())
    held += sum(tensor.nbytes for tensor in packed.model.buffers())
    assert packed.model_size() == held


def test_a_float16_model_computes_in_what_the_config_says():
    stock = loaded_by_host(other_dits.sd3_tensors(torch.float16), dtype=torch.float16)
    packed = quantize_model(stock, QuantConfig("nf4", torch.float32))
    assert packed.model_dtype() == torch.float32 and packed.model.manual_cast_dtype is None
    assert all(layer.compute_dtype == torch.float32 for layer in packed_linears(packed.model).values())
    assert denoised(packed).isfinite().all()
    assert stock.model_dtype() == torch.float16
