"""What files of every kind are loaded as, and what that is held to."""

from pathlib import Path

import small_models
import torch
from format_files import IN_ALL_IN_ONE, as_float8, prefixed
from quantflux.quant_core.checkpoint import open_checkpoint
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import dequantize, is_packed, plain_tensors
from quantflux.quant_core.memory import model_nbytes, planned_nbytes
from quantflux.quant_core.quantize import load
from quantflux.quant_core.source import flux_source
from safetensors.torch import save_file

NONE = QuantConfig("none")
NESTED = QuantConfig("nf4", double_quant=True)
BY_DIFFUSERS = {
    "nf4": QuantConfig("nf4"),
    "fp4": QuantConfig("fp4"),
    "nf4 nested": NESTED,
    "int8": QuantConfig("int8"),
    "nf4, modules skipped": QuantConfig("nf4", skip_modules=("proj_out", "x_embedder", "norm_out")),
    "int8, modules skipped": QuantConfig("int8", skip_modules=("proj_out", "transformer_blocks.0")),
}
SUFFIXES = {
    "nf4": ("weight", "absmax", "quant_map", "bitsandbytes__nf4", "bias"),
    "nf4 nested": ("weight", "absmax", "quant_map", "nested_absmax", "nested_quant_map", "bitsandbytes__nf4", "bias"),
    "int8": ("weight", "SCB", "weight_format", "bias"),
}


def loaded_as_planned(path, config=None, component="", read=flux_source) -> dict[str, torch.Tensor]:
    """What a file or folder is loaded as: it must take the bytes that were planned from its header."""
    source = read(open_checkpoint(path, component), config)
    loaded = load(source)
    assert model_nbytes(loaded.values())[0] == planned_nbytes(source)
    return loaded


def require_values(loaded, expected):
    """``loaded`` stands for exactly the ``expected`` values, in their dtype."""
    assert loaded.keys() == expected.keys()
    for name, values in expected.items():
        assert torch.equal(dequantize(loaded[name], values.dtype), values), name


def require_same_tensors(loaded, expected):
    """Packed bytes and statistics are the same too."""
    assert loaded.keys() == expected.keys()
    for name in expected:
        assert loaded[name].shape == expected[name].shape, name
        for one, other in zip(plain_tensors(loaded[name]), plain_tensors(expected[name]), strict=True):
            assert torch.equal(one, other), name


def packed_modules(loaded) -> set[str]:
    return {name.removesuffix(".weight") for name, tensor in loaded.items() if is_packed(tensor)}


def saved(tmp_path, tensors, prefix="") -> Path:
    path = tmp_path / "flux.safetensors"
    save_file(prefixed(prefix, tensors), path)
    return path


def all_in_one(tmp_path, flux, t5_model) -> tuple[Path, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(a checkpoint of everything a picture needs, its T5's tensors in fp8, its CLIP-L's in float16)."""
    t5, _ = as_float8(t5_model.state_dict(), torch.float8_e4m3fn)
    t5.pop("encoder.embed_tokens.weight")
    clip_l = {f"text_model.{n.removeprefix('text_model.')}": t for n, t in clip_l_tensors().items()}
    vae = {"decoder.up.0.block.0.conv1.weight": torch.zeros(8, 8, 3, 3, dtype=torch.bfloat16)}
    members = {"flux": flux, "t5": t5, "clip_l": clip_l, "vae": vae}
    path = tmp_path / "all_in_one.safetensors"
    save_file({n: t for key, member in members.items() for n, t in prefixed(IN_ALL_IN_ONE[key], member).items()}, path)
    return path, t5, clip_l


def clip_l_tensors():
    return small_models.random_clip_l().state_dict()
