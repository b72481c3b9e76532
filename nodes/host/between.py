"""What the host's blocks do between packed layers, by our kernels where they run."""

from __future__ import annotations

import functools

import comfy.ldm.flux.layers
import torch

from ...quant_core.kernels.gelu import can_activate, gelu
from ...quant_core.kernels.rms_norm import can_normalize, rms_norm
from .operations import packed_linears

# hosts up to 0.8 have a class of their own, with eps in its forward
_SCALED = getattr(comfy.ldm.flux.layers, "RMSNorm", None)
_EPS_OF_SCALED = 1e-6
_NORM = _SCALED or torch.nn.RMSNorm


class Ours:
    """Mixed into a module's class in front of ``stock``, which it is otherwise."""

    stock: type


class Gelu(Ours, torch.nn.GELU):
    """The tanh form by :func:`.gelu.gelu`."""

    stock = torch.nn.GELU

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return gelu(x) if can_activate(x) else super().forward(x)


class RMSNorm(Ours):
    """By :func:`.rms_norm.rms_norm` where no patch is applied to its weight at each use."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight, eps = (self.weight, self.eps) if _SCALED is None else (self.scale, _EPS_OF_SCALED)
        if torch.compiler.is_compiling() or getattr(self, "weight_function", None):
            return super().forward(x)
        if weight.device != x.device:
            weight = weight.to(x.device)  # offloaded: the picture is to be the same to the bit
        return rms_norm(x, weight, eps) if can_normalize(x, weight) else super().forward(x)


def use_ours(model: torch.nn.Module) -> None:
    """Have our kernels do what stands between the layers of ``model``, if anything in it is packed.

    Else the model stays the host's, to the bit. Its modules must not be another model's, too.
    """
    if not packed_linears(model):
        return
    for module in model.modules():
        if type(module) is torch.nn.GELU and module.approximate == "tanh":
            module.__class__ = Gelu
        elif isinstance(module, comfy.ldm.flux.layers.QKNorm):
            for norm in (module.query_norm, module.key_norm):
                if isinstance(norm, _NORM):
                    norm.__class__ = _ours(type(norm))


def give_back(module: torch.nn.Module) -> None:
    """Make ``module`` what it was if it is one of ours."""
    if isinstance(module, Ours):
        module.__class__ = module.stock


@functools.cache
def _ours(norm: type) -> type:
    return norm if issubclass(norm, Ours) else type(norm.__name__, (RMSNorm, norm), {"stock": norm})
