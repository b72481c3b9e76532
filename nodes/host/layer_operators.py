"""What a layer does within a compiled graph without being traced: operators that look the layer up when they run."""

from __future__ import annotations

import weakref

import torch

from ...quant_core.kernels.operator import operator

# An operator can be given a number, not a module. Kept where torch keeps the operators: if this file is imported twice
# in a process, both have the same.
_LAYERS = vars(torch.ops.quantflux).setdefault("layers", weakref.WeakValueDictionary())


def number_of(layer: torch.nn.Module) -> torch.Tensor:
    """What the operators know ``layer`` by, int64 ``()`` on the CPU: a tensor, so that one graph serves many layers."""
    _LAYERS[id(layer)] = layer
    return torch.tensor(id(layer), device="cpu")


@operator("quantflux::patched", "(Tensor tensor, Tensor layer, str hooks) -> Tensor")
def patched(tensor: torch.Tensor, layer: torch.Tensor, hooks: str) -> torch.Tensor:
    """A copy of a weight or bias, with the patches that the layer has at the moment.

    Traced, a patch would be compiled anew for another strength, which is a float.

    Args:
        hooks: the name of the layer's list of functions: ``weight_function`` or ``bias_function``.
    """
    result = tensor.clone()
    for function in getattr(_LAYERS[int(layer)], hooks):
        result = function(result)
    return result


@patched.register_fake
def _(tensor: torch.Tensor, layer: torch.Tensor, hooks: str) -> torch.Tensor:
    return torch.empty_like(tensor)


@operator("quantflux::offloaded_linear", "(Tensor x, Tensor layer, int rows) -> Tensor")
def offloaded_linear(x: torch.Tensor, layer: torch.Tensor, rows: int) -> torch.Tensor:
    """What the layer makes of ``x (..., columns)``: ``(..., rows)``.

    The streams that bring its weight, and the packed tensor that is made of it, would break a graph.
    """
    return _LAYERS[int(layer)](x)


@offloaded_linear.register_fake
def _(x: torch.Tensor, layer: torch.Tensor, rows: int) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], rows)
