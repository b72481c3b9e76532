"""The host's activations between packed layers, by our kernels where they run."""

from __future__ import annotations

import torch

from ...quant_core.kernels.gelu import gelu
from .operations import packed_linears


class Gelu(torch.nn.GELU):
    """The tanh form by :func:`.gelu.gelu`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return gelu(x)


def use_own_gelu(model: torch.nn.Module) -> None:
    """Have every GELU of the tanh form in ``model`` be ours, if anything in it is packed; else the model stays the
    host's, to the bit. Its modules must not be another model's, too."""
    if not packed_linears(model):
        return
    for module in model.modules():
        if type(module) is torch.nn.GELU and module.approximate == "tanh":
            module.__class__ = Gelu


def give_back_gelu(module: torch.nn.Module) -> None:
    """Make ``module`` torch's own again if it is our GELU."""
    if type(module) is Gelu:
        module.__class__ = torch.nn.GELU
