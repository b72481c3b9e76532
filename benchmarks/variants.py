"""The models that are compared: each a name and how the host gets it from a 16-bit file."""

from __future__ import annotations

import os
from collections.abc import Callable

import comfy.sd
import folder_paths
import torch
from peer_bare import bare_4bit, bare_int8
from peer_diffusers import diffusers
from peer_gguf import gguf
from quantflux.nodes.compile import QuantFluxCompile
from quantflux.nodes.load_transformer import QuantFluxLoadTransformer
from quantflux.quant_core.config import FLOAT8, QuantConfig

Loader = Callable[[str], object]


def stock(**options) -> Loader:
    """The host's own loader."""
    return lambda path: comfy.sd.load_diffusion_model(path, model_options=options)


def ours(**fields) -> Loader:
    """The node Load Quantized Transformer."""

    def load(path: str):
        folder, name = os.path.split(path)
        folder_paths.add_model_folder_path("diffusion_models", folder)
        return QuantFluxLoadTransformer.execute(name, QuantConfig(**fields))[0]

    return load


def compiled(load: Loader, mode: str = "default") -> Loader:
    """The same behind the node Compile, block by block."""
    return lambda path: QuantFluxCompile.execute(load(path), "inductor", mode, True, False, "auto").args[0]


FP8 = {"dtype": torch.float8_e4m3fn}
EAGER: dict[str, Loader] = {
    "stock-bf16": stock(),
    "stock-fp8": stock(**FP8),
    "stock-fp8fast": stock(fp8_optimizations=True, **FP8),
    "gguf-q8_0": gguf("q8_0"),
    "gguf-q4_0": gguf("q4_0"),
    "bare-nf4": bare_4bit("nf4"),
    "bare-nf4-dq": bare_4bit("nf4", double_quant=True),
    "bare-int8-t0": bare_int8(0.0),
    "bare-int8-t6": bare_int8(6.0),
    "ours-nf4": ours(precision="nf4"),
    "ours-nf4-dq": ours(precision="nf4", double_quant=True),
    "ours-nf4-fp8": ours(precision="nf4", compute_dtype=FLOAT8),
    "ours-fp4": ours(precision="fp4"),
    "ours-int8-t0": ours(precision="int8", int8_threshold=0.0),
    "ours-int8-t6": ours(precision="int8", int8_threshold=6.0),
}
VARIANTS = EAGER | {f"{name}-compile": compiled(load) for name, load in EAGER.items()}
VARIANTS |= {f"{name}-compile-graphs": compiled(load, "reduce-overhead") for name, load in EAGER.items()}
for kind in ("bf16", "nf4", "int8"):
    VARIANTS |= {f"diffusers-{kind}": diffusers(kind), f"diffusers-{kind}-compile": diffusers(kind, compiled=True)}
