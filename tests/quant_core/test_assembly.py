"""Tensors that are made of several stored ones: what they become, and how many bytes they then take."""

import json
import logging

import pytest
import torch
from bitsandbytes.functional import int8_vectorwise_dequant, int8_vectorwise_quant
from format_files import packed_4bit
from quantflux.quant_core.assembly import Assembly
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.errors import CheckpointError
from quantflux.quant_core.flux.tensors import fused_tensors
from quantflux.quant_core.layouts import dequantize, is_packed, nbytes
from quantflux.quant_core.stored import read_contents
from safetensors.torch import save_file

CPU = torch.device("cpu")
COLUMNS = 64
pytestmark = pytest.mark.usefixtures("one_thread")

NF4 = {"quant_type": "nf4"}
OTHER_BLOCKSIZE = {"quant_type": "nf4", "blocksize": 128}
NESTED = {"quant_type": "nf4", "double_quant": True}
FP4 = {"quant_type": "fp4"}
INT8 = "int8"
MIXTURES = {
    "one of them left at bfloat16": (NF4, torch.bfloat16, NF4),
    "the first left at bfloat16": (torch.bfloat16, NF4, NF4),
    "blocksizes": (NF4, OTHER_BLOCKSIZE),
    "nf4 and fp4": (NF4, FP4),
    "nf4 and int8": (NF4, INT8),
    "int8 and bfloat16": (INT8, torch.bfloat16),
    "nested and bfloat16": (NESTED, torch.bfloat16),
    "fp8 and nf4": (torch.float8_e4m3fn, NF4),
}


def stored_part(
    weight: torch.Tensor, form, module: str, packed_from=torch.bfloat16
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """(the tensors of one part in a file, the values that they stand for), by bitsandbytes."""
    name = f"{module}.weight"
    if isinstance(form, torch.dtype):
        return {name: weight.to(form)}, weight.to(form)
    if form == INT8:
        data, scale, _ = int8_vectorwise_quant(weight.to(torch.float16))
        return {name: data, f"{module}.SCB": scale}, int8_vectorwise_dequant(data, scale)
    tensors, values = packed_4bit(weight.to(packed_from), **form)
    return {name + suffix: tensor for suffix, tensor in tensors.items()}, values


def assembled(tmp_path, forms, heights=None, swapped=False, packed_from=torch.bfloat16):
    """(the assembly, what it reads as, values of its parts)."""
    generator = torch.Generator().manual_seed(0)
    tensors, values = {}, []
    for i, (form, height) in enumerate(zip(forms, heights or [32] * len(forms), strict=True)):
        weight = torch.randn(height, COLUMNS, generator=generator, dtype=torch.float32)
        stored, value = stored_part(weight, form, f"part{i}", packed_from)
        tensors |= stored
        values.append(value)
    path = tmp_path / "parts.safetensors"
    save_file(tensors, path)
    checkpoint = open_checkpoint(path)
    contents = read_contents(checkpoint)
    assembly = Assembly(tuple(contents.tensors[f"part{i}.weight"] for i in range(len(forms))), swapped)
    with checkpoint.reader() as reader:
        return assembly, assembly.read(reader, CPU), values


@pytest.mark.parametrize("forms", MIXTURES.values(), ids=MIXTURES)
def test_parts_that_cannot_be_stacked_packed_are_unpacked_exactly(tmp_path, forms):
    assembly, whole, values = assembled(tmp_path, forms)
    assert assembly.unpacked and not is_packed(whole)
    assert whole.dtype is assembly.dtype is torch.bfloat16
    assert torch.equal(whole, torch.cat([value.to(torch.bfloat16) for value in values]))
    assert nbytes(whole) == assembly.nbytes


@pytest.mark.parametrize("forms", [(NF4,) * 3, (FP4,) * 2, (NESTED,) * 3, (NESTED, NF4), (OTHER_BLOCKSIZE,) * 2])
@pytest.mark.parametrize("swapped", [False, True])
def test_parts_of_one_packing_stay_packed_and_take_the_bytes_that_are_planned(tmp_path, forms, swapped):
    assembly, whole, values = assembled(tmp_path, forms, swapped=swapped)
    expected = torch.cat(values)
    if swapped:
        expected = torch.cat(expected.chunk(2)[::-1])
    assert is_packed(whole) and assembly.packing
    assert torch.equal(dequantize(whole, torch.bfloat16), expected)
    assert nbytes(whole) == assembly.nbytes


def test_int8_parts_stay_packed_and_take_the_bytes_that_are_planned(tmp_path):
    assembly, whole, values = assembled(tmp_path, (INT8, INT8), heights=(32, 48))
    assert is_packed(whole)
    assert torch.equal(dequantize(whole, torch.float32), torch.cat(values))
    assert nbytes(whole) == assembly.nbytes == 80 * COLUMNS + 4 * 80


def test_a_single_nested_weight_stays_nested_and_a_swapped_one_is_expanded(tmp_path):
    for swapped in (False, True):
        assembly, whole, _ = assembled(tmp_path, (NESTED,), swapped=swapped)
        assert whole._params.nested is not swapped
        assert nbytes(whole) == assembly.nbytes


@pytest.mark.parametrize(
    ("forms", "heights", "swapped"),
    [
        ((OTHER_BLOCKSIZE, OTHER_BLOCKSIZE), (31, 33), False),
        ((OTHER_BLOCKSIZE,), (30,), True),
        (({"blocksize": 4096, "double_quant": True},) * 2, (32, 64), False),
    ],
    ids=["between parts", "between halves", "nested"],
)
def test_a_block_that_would_be_cut_is_unpacked_exactly(tmp_path, forms, heights, swapped):
    assembly, whole, values = assembled(tmp_path, forms, heights, swapped=swapped)
    expected = torch.cat(values)
    assert assembly.unpacked and not is_packed(whole)
    assert torch.equal(whole, torch.cat(expected.chunk(2)[::-1]) if swapped else expected)
    assert nbytes(whole) == assembly.nbytes


def test_a_last_block_that_is_not_full_stays_packed_where_nothing_follows_it(tmp_path):
    for forms, heights in (((OTHER_BLOCKSIZE,), (31,)), ((OTHER_BLOCKSIZE, OTHER_BLOCKSIZE), (32, 31))):
        assembly, whole, values = assembled(tmp_path, forms, heights)
        assert is_packed(whole)
        assert torch.equal(dequantize(whole, torch.bfloat16), torch.cat(values))
        assert nbytes(whole) == assembly.nbytes


@pytest.mark.parametrize("other", [NF4, NESTED, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("order", [1, -1])
def test_parts_of_different_dtypes_lose_nothing_and_take_the_bytes_that_are_planned(tmp_path, other, order):
    # one part was kept at 32 bit: rounding it to the others' 16 would change it
    assembly, whole, values = assembled(tmp_path, (torch.float32, other)[::order])
    assert whole.dtype is assembly.dtype is torch.float32
    assert torch.equal(whole.double(), torch.cat([value.double() for value in values]))
    assert nbytes(whole) == assembly.nbytes


@pytest.mark.parametrize("packed_from", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_packed_weight_is_read_in_the_dtype_it_was_packed_from(tmp_path, packed_from):
    for forms in ((NF4,), (NESTED, NF4)):
        assembly, whole, values = assembled(tmp_path, forms, packed_from=packed_from)
        assert is_packed(whole) and whole.dtype is assembly.dtype is packed_from
        assert torch.equal(dequantize(whole, packed_from), torch.cat(values))


@pytest.mark.parametrize("order", [1, -1])
def test_float16_beside_int8_stays_exactly_what_it_is(tmp_path, order):
    # LLM.int8() models are float16 as a rule, and their files do not say so for packed weights
    assembly, whole, values = assembled(tmp_path, (INT8, torch.float16)[::order])
    assert whole.dtype is assembly.dtype is torch.float16
    assert torch.equal(whole, torch.cat([value.to(torch.float16) for value in values]))
    assert nbytes(whole) == assembly.nbytes


def diffusers_contents(tmp_path, tensors):
    path = tmp_path / "flux.safetensors"
    save_file(tensors, path)
    return read_contents(open_checkpoint(path))


def qkv(forms, heights=(32, 32, 32)):
    tensors = {}
    for name, form, height in zip(("to_q", "to_k", "to_v"), forms, heights, strict=True):
        module = f"transformer_blocks.0.attn.{name}"
        tensors |= stored_part(torch.randn(height, COLUMNS).bfloat16(), form, module)[0]
        tensors[f"{module}.bias"] = torch.zeros(height, dtype=torch.bfloat16)
    return tensors


def test_the_log_says_which_parts_keep_a_module_from_staying_packed(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        fused_tensors(diffusers_contents(tmp_path, qkv((NF4, torch.bfloat16, OTHER_BLOCKSIZE))))
    (message,) = [record.getMessage() for record in caplog.records]
    for words in (
        "flux.safetensors: double_blocks.0.img_attn.qkv.weight cannot stay packed",
        "to_q.weight (nf4 blocksize 64)",
        "to_k.weight (not packed)",
        "to_v.weight (nf4 blocksize 128)",
        "16 bit",
    ):
        assert words in message


def test_the_log_is_silent_where_all_stays_packed_or_nothing_was(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        fused_tensors(diffusers_contents(tmp_path, qkv((NF4, NESTED, NF4))))
        fused_tensors(diffusers_contents(tmp_path, qkv((torch.bfloat16,) * 3)))
    assert not caplog.records


def test_a_part_that_is_missing_or_of_another_width_is_refused_by_its_name(tmp_path):
    tensors = qkv((NF4, NF4, NF4))
    del tensors["transformer_blocks.0.attn.to_k.weight.absmax"]
    with pytest.raises(CheckpointError, match=r"flux.safetensors: .*to_k.weight.absmax is missing"):
        diffusers_contents(tmp_path, tensors)
    whole = qkv((torch.bfloat16,) * 3)
    missing = {name: tensor for name, tensor in whole.items() if "to_v" not in name}
    with pytest.raises(CheckpointError, match=r"flux.safetensors: lacks the tensor transformer_blocks.0.attn.to_v"):
        fused_tensors(diffusers_contents(tmp_path, missing))
    narrow = whole | {"transformer_blocks.0.attn.to_v.weight": torch.zeros(32, COLUMNS // 2, dtype=torch.bfloat16)}
    with pytest.raises(CheckpointError, match=r"to_v.weight of shape \(32, 32\), which cannot be rows of one layer"):
        fused_tensors(diffusers_contents(tmp_path, narrow))


def test_a_description_that_contradicts_its_weight_is_refused_by_its_name(tmp_path):
    name = "transformer_blocks.0.attn.to_q.weight"
    state_name = f"{name}.quant_state.bitsandbytes__nf4"
    tensors = qkv((NF4, NF4, NF4))
    state = json.loads(bytes(tensors[state_name].tolist()))
    text = json.dumps(state | {"shape": [64, COLUMNS]}).encode()
    with pytest.raises(CheckpointError, match=rf"flux.safetensors: cannot unpack {name}: {name} has 1024 bytes"):
        diffusers_contents(tmp_path, tensors | {state_name: torch.tensor(list(text), dtype=torch.uint8)})
