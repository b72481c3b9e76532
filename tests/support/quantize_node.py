"""The Quantize Model node on any MODEL, and the same done by hand."""

from __future__ import annotations

import torch
from comfy_host import has_accelerator
from quantflux.nodes.host.operations import PackedLinear, packed_linears
from quantflux.nodes.quantize import QuantFluxQuantize
from quantflux.quant_core.config import QuantConfig
from quantflux.quant_core.layouts import dequantize, quantize

NF4 = QuantConfig("nf4", torch.float32)
# How far apart predictions may be that should be the same. On a GPU a plain model of the host computes in 16 bit.
CLOSE = 0.02 if has_accelerator() else 2e-3


def quantize_model(model, config: QuantConfig | None = NF4):
    """The MODEL that the node makes of ``model``."""
    return QuantFluxQuantize.execute(model, config).args[0]


def packed_as_by_hand(model, linears, config: QuantConfig) -> dict[str, torch.Tensor]:
    """Tensors of the transformer, those of ``linears`` with the values that quantizing leaves them."""
    tensors = {name: tensor.clone() for name, tensor in model.model.diffusion_model.state_dict().items()}
    for name in linears:
        weight = tensors[f"{name}.weight"]
        tensors[f"{name}.weight"] = dequantize(quantize(weight, config), weight.dtype)
    return tensors


def linears_of(model) -> set[str]:
    """Names of the linear layers, packed or not."""
    modules = model.model.diffusion_model.named_modules()
    return {name for name, module in modules if isinstance(module, (torch.nn.Linear, PackedLinear))}


def packed_names(model) -> set[str]:
    return set(packed_linears(model.model.diffusion_model))
