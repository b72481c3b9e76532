"""Bare bitsandbytes: its layers dropped into the host's Flux, without LoRA, offloading or accounting."""

from __future__ import annotations

import bitsandbytes as bnb
import comfy.ops
import comfy.sd
import torch
from comfy.model_management import get_torch_device


def bare_4bit(quant_type: str, double_quant: bool = False):
    """A loader for ``variants.py``: ``Linear4bit``."""

    def layer(columns: int, rows: int, weight: torch.Tensor) -> torch.nn.Module:
        inner = bnb.nn.Linear4bit(
            columns,
            rows,
            compute_dtype=torch.bfloat16,
            compress_statistics=double_quant,
            quant_type=quant_type,
            device="meta",
        )
        inner.weight = bnb.nn.Params4bit(
            weight.contiguous(), requires_grad=False, quant_type=quant_type, compress_statistics=double_quant
        ).to(get_torch_device())
        return inner

    return _loader(layer)


def bare_int8(threshold: float):
    """A loader for ``variants.py``: ``Linear8bitLt``, LLM.int8()."""

    def layer(columns: int, rows: int, weight: torch.Tensor) -> torch.nn.Module:
        inner = bnb.nn.Linear8bitLt(columns, rows, has_fp16_weights=False, threshold=threshold, device="meta")
        inner.weight = bnb.nn.Int8Params(
            weight.half().contiguous(), requires_grad=False, has_fp16_weights=False
        ).to(get_torch_device())  # fmt: skip
        return inner

    return _loader(layer)


def _loader(make_layer):
    class Linear(torch.nn.Module):
        def __init__(self, in_features, out_features, bias=True, device=None, dtype=None):
            super().__init__()
            self.weight = self.bias = None
            self.sizes = in_features, out_features

        def _load_from_state_dict(self, state_dict, prefix, *args):
            self.inner = make_layer(*self.sizes, state_dict[prefix + "weight"])
            bias = state_dict[prefix + "bias"].to(get_torch_device())
            self.inner.bias = torch.nn.Parameter(bias, requires_grad=False)

        def forward(self, x):
            return self.inner(x)

    operations = type("BareOperations", (comfy.ops.manual_cast,), {"Linear": Linear})
    return lambda path: comfy.sd.load_diffusion_model(path, model_options={"custom_operations": operations})
