"""Files and folders in the formats that people have, written by the libraries that they are written with.

Nothing here goes through the project's own packing: bitsandbytes packs and unpacks, safetensors, diffusers and
transformers write.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import bitsandbytes.functional as bnb
import pytest
import torch
import transformers
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt
from bnb_references import quantized_by_diffusers
from comfy_kitchen.tensor import QuantizedTensor
from dequantized import dequantized_4bit
from safetensors.torch import load_file, save_file

DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
TRANSFORMERS_WEIGHTS = "model.safetensors"

# how an all-in-one checkpoint calls its members
IN_ALL_IN_ONE = {
    "flux": "model.diffusion_model.",
    "t5": "text_encoders.t5xxl.transformer.",
    "clip_l": "text_encoders.clip_l.transformer.",
    "vae": "vae.",
}

Tensors = dict[str, torch.Tensor]


def prefixed(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {prefix + name: tensor.contiguous() for name, tensor in tensors.items()}


# fp8 ------------------------------------------------------------------------------------------------------------------


def as_float8(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> tuple[Tensors, Tensors]:
    """(tensors of a plain cast to fp8, bfloat16 values that they stand for)."""
    stored = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return stored, {name: tensor.to(torch.bfloat16) for name, tensor in stored.items()}


def as_scaled_float8(
    tensors: Mapping[str, torch.Tensor], linears: set[str], suffix: str, scale_shape: str, dtype: torch.dtype
) -> tuple[Tensors, Tensors]:
    """(tensors with the ``linears`` scaled to fp8's range, bfloat16 values that they stand for).

    Args:
        suffix: what the scale of ``X.weight`` is called: ``scale_weight`` in the older files, ``weight_scale`` in the
            newer.
        scale_shape: ``()`` or ``(1,)`` for one scale, ``(rows,)`` or ``(rows, 1)`` for one per row.
    """
    stored, values = dict(tensors), dict(tensors)
    for module in linears:
        weight = tensors[f"{module}.weight"].float()
        largest = weight.abs().amax(1) if "rows" in scale_shape else weight.abs().amax()
        scale = largest / torch.finfo(dtype).max
        shape = {"()": (), "(1,)": (1,), "(rows,)": (len(weight),), "(rows, 1)": (len(weight), 1)}[scale_shape]
        column = scale.reshape(-1, 1)
        stored[f"{module}.weight"] = (weight / column).to(dtype)
        stored[f"{module}.{suffix}"] = scale.reshape(shape)
        values[f"{module}.weight"] = (stored[f"{module}.weight"].float() * column).to(torch.bfloat16)
        if suffix == "weight_scale":
            description = json.dumps({"format": str(dtype).removeprefix("torch.")}).encode()
            stored[f"{module}.comfy_quant"] = torch.tensor(list(description), dtype=torch.uint8)
    if suffix == "scale_weight":
        stored["scaled_fp8"] = torch.zeros(2, dtype=dtype)
    return stored, values


def as_comfyui(tensors: Mapping[str, torch.Tensor], linears: set[str], layout: str, form: str) -> Tensors:
    """The tensors with the ``linears`` as ComfyUI stores them in one of the formats of its own quantization.

    Args:
        layout: comfy_kitchen's name for the format.
        form: ComfyUI's.
    """
    stored = dict(tensors)
    for module in linears:
        stored |= QuantizedTensor.from_float(tensors[f"{module}.weight"], layout).state_dict(f"{module}.weight")
        stored[f"{module}.comfy_quant"] = torch.tensor(list(json.dumps({"format": form}).encode()), dtype=torch.uint8)
    return stored


# packed by bitsandbytes -----------------------------------------------------------------------------------------------


def packed_4bit(
    weight: torch.Tensor,
    quant_type: str = "nf4",
    blocksize: int = 64,
    double_quant: bool = False,
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensors, torch.Tensor]:
    """(the tensors that a state dict has for ``weight``, keyed by what follows its name; the values they stand for)."""
    data, state = bnb.quantize_4bit(
        weight,
        blocksize=blocksize,
        compress_statistics=double_quant,
        quant_type=quant_type,
        quant_storage=quant_storage,
    )
    described = {f".{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    return {"": data} | described, dequantized_4bit(data, state)


def pack_4bit(tensors: Mapping[str, torch.Tensor], linears: set[str], **recipe) -> tuple[Tensors, Tensors]:
    """(tensors with the ``linears`` packed by bitsandbytes' ``quantize_4bit``, values that they stand for)."""
    stored, values = dict(tensors), dict(tensors)
    for name in (f"{module}.weight" for module in linears):
        packed, values[name] = packed_4bit(tensors[name], **recipe)
        stored |= {name + suffix: tensor for suffix, tensor in packed.items()}
    return stored, values


def pack_with_linear4bit(tensors: Mapping[str, torch.Tensor], linears: set[str], **recipe) -> tuple[Tensors, Tensors]:
    """As :func:`pack_4bit`, but as the state dict of bitsandbytes' ``Linear4bit`` layers has it."""
    stored, values = dict(tensors), dict(tensors)
    for module in linears:
        weight = tensors[f"{module}.weight"]
        layer = Linear4bit(weight.shape[1], weight.shape[0], bias=False, **recipe)
        layer.weight.data = weight.clone()
        layer = layer.to("cpu")
        stored |= {f"{module}.{name}": tensor for name, tensor in layer.state_dict().items()}
        values[f"{module}.weight"] = dequantized_4bit(layer.weight.data, layer.weight.quant_state)
    return stored, values


def pack_with_linear8bit(tensors: Mapping[str, torch.Tensor], linears: set[str]) -> tuple[Tensors, Tensors]:
    """(tensors with the ``linears`` as the state dict of ``Linear8bitLt`` has them, bfloat16 values they stand for)."""
    stored, values = dict(tensors), dict(tensors)
    for module in linears:
        weight = tensors[f"{module}.weight"]
        layer = Linear8bitLt(weight.shape[1], weight.shape[0], bias=False, has_fp16_weights=False)
        layer.weight = Int8Params(weight.to(torch.float16), requires_grad=False, has_fp16_weights=False)
        layer = layer.to("cpu")
        stored |= {f"{module}.{name}": tensor for name, tensor in layer.state_dict().items()}
        values[f"{module}.weight"] = dequantized(layer.weight, torch.bfloat16)
    return stored, values


def dequantized(weight: torch.Tensor, int8_dtype: torch.dtype) -> torch.Tensor:
    """A weight of a model that diffusers or transformers packed, unpacked by bitsandbytes.

    Args:
        int8_dtype: dtype for LLM.int8() weights, which know none of their own.
    """
    if getattr(weight, "quant_state", None) is not None:
        return dequantized_4bit(weight.data, weight.quant_state)
    if getattr(weight, "SCB", None) is not None:
        return bnb.int8_vectorwise_dequant(weight.data, weight.SCB).to(int8_dtype)
    return weight.detach()


def values_of(model: torch.nn.Module, int8_dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """What the parameters of a model stand for, packed or not."""
    return {name: dequantized(parameter, int8_dtype) for name, parameter in model.named_parameters()}


def flux_folder_by_diffusers(model, config, folder: Path, dtype=torch.bfloat16, **save) -> Tensors:
    """Have diffusers pack ``model`` and save it to ``folder``; give the values that its weights stand for."""
    with pytest.MonkeyPatch.context() as patch:
        packed = quantized_by_diffusers(model, config, folder.parent / f"{folder.name}_source", patch, dtype)
    packed.save_pretrained(folder, **save)
    return values_of(packed, dtype)


def t5_folder_by_transformers(model, config, folder: Path, **save) -> Tensors:
    """Have transformers pack ``model`` and save it to ``folder``; give the values that its weights stand for."""
    source = folder.parent / f"{folder.name}_source"
    with torch.inference_mode(False):
        model.save_pretrained(source)
        packed = transformers.T5EncoderModel.from_pretrained(
            source, quantization_config=config.to_transformers(), dtype=torch.bfloat16, device_map="cpu"
        )
    packed.save_pretrained(folder, **save)
    return values_of(packed)


# shards ---------------------------------------------------------------------------------------------------------------


def shard(folder: Path, shard_of: Callable[[str], int], weights: str = DIFFUSERS_WEIGHTS) -> int:
    """Spread the one safetensors file of a model folder over several, with the index that tells where tensors are.

    Args:
        shard_of: tensor name -> number of its shard.

    Returns:
        how many shards there are.
    """
    tensors = load_file(folder / weights)
    (folder / weights).unlink()
    stem = weights.removesuffix(".safetensors")
    numbers = {name: shard_of(name) for name in tensors}
    files = {number: f"{stem}-{i:05}.safetensors" for i, number in enumerate(sorted(set(numbers.values())), start=1)}
    for number, file in files.items():
        save_file({name: t for name, t in tensors.items() if numbers[name] == number}, folder / file)
    index = {"metadata": {}, "weight_map": {name: files[number] for name, number in numbers.items()}}
    (folder / f"{weights}.index.json").write_text(json.dumps(index))
    return len(files)


def change_tensors(folder: Path, change: Callable[[Tensors], None], weights: str = DIFFUSERS_WEIGHTS) -> None:
    """Rewrite the one safetensors file of a model folder."""
    tensors = load_file(folder / weights)
    change(tensors)
    save_file(tensors, folder / weights)


# no data --------------------------------------------------------------------------------------------------------------


def write_sparse(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], int]], content: Mapping[str, bytes]):
    """A safetensors file of full size that takes no room on the disk: its header, and nothing after it.

    Args:
        tensors: name -> (safetensors' dtype, shape, bytes).
        content: the few tensors that do have data.
    """
    header, offset = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        start = file.tell()
        for name, data in content.items():
            file.seek(start + header[name]["data_offsets"][0])
            file.write(data)
        file.truncate(start + offset)
