"""The models that are compared: each a name and how the host gets it from a 16-bit file."""

from __future__ import annotations

import os
from collections.abc import Callable

import comfy.ops
import comfy.sd
import folder_paths
import torch
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


def compiled(load: Loader) -> Loader:
    """The same behind the node Compile, block by block."""
    return lambda path: QuantFluxCompile.execute(load(path), "inductor", "default", True, False, "auto").args[0]


def bare_4bit(**fields) -> Loader:
    """bitsandbytes' Linear4bit dropped into the host's Flux: no LoRA, no offload, no accounting."""
    return lambda path: comfy.sd.load_diffusion_model(path, model_options={"custom_operations": _bare_4bit(**fields)})


def _bare_4bit(quant_type: str, double_quant: bool = False) -> type:
    import bitsandbytes as bnb

    class Linear(torch.nn.Module):
        def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
            super().__init__()
            self.weight = self.bias = None
            self.sizes = in_features, out_features

        def _load_from_state_dict(self, state_dict, prefix, *args):
            self.inner = bnb.nn.Linear4bit(
                *self.sizes,
                compute_dtype=torch.bfloat16,
                compress_statistics=double_quant,
                quant_type=quant_type,
                device="meta",
            )
            self.inner.weight = bnb.nn.Params4bit(
                state_dict[prefix + "weight"].contiguous(),
                requires_grad=False,
                quant_type=quant_type,
                compress_statistics=double_quant,
            ).to("cuda")
            self.inner.bias = torch.nn.Parameter(state_dict[prefix + "bias"].to("cuda"), requires_grad=False)

        def forward(self, x):
            return self.inner(x)

    return type("Bare4bitOperations", (comfy.ops.manual_cast,), {"Linear": Linear})


FP8 = {"dtype": torch.float8_e4m3fn}
EAGER: dict[str, Loader] = {
    "stock-bf16": stock(),
    "stock-fp8": stock(**FP8),
    "stock-fp8fast": stock(fp8_optimizations=True, **FP8),
    "bare-nf4": bare_4bit(quant_type="nf4"),
    "ours-nf4": ours(precision="nf4"),
    "ours-nf4-dq": ours(precision="nf4", double_quant=True),
    "ours-nf4-fp8": ours(precision="nf4", compute_dtype=FLOAT8),
    "ours-fp4": ours(precision="fp4"),
    "ours-int8-t0": ours(precision="int8", int8_threshold=0.0),
    "ours-int8-t6": ours(precision="int8", int8_threshold=6.0),
}
VARIANTS = EAGER | {f"{name}-compile": compiled(load) for name, load in EAGER.items()}
