"""What the host's own layers hold, and what it stands for."""

from __future__ import annotations

import comfy.ops
import comfy.quant_ops
import torch
from comfy_kitchen.tensor import QuantizedTensor

from ...quant_core.stored.plain import SIXTEEN_BIT

VALUES = torch.bfloat16  # of weights in 8 bits or fewer, as when they are read from a file


def is_linear(module: torch.nn.Module) -> bool:
    """Whether ``module`` multiplies by a 2-dimensional weight: one of the host's classes, or torch's own.

    Other subclasses of torch's may compute otherwise, or, as in its attention, never be called.
    """
    # one of the host's is no subclass of torch's
    own = isinstance(module, comfy.ops.CastWeightBiasOp) and hasattr(module, "in_features")
    weight = getattr(module, "weight", None)
    return (own or type(module) is torch.nn.Linear) and isinstance(weight, torch.Tensor) and weight.dim() == 2


def is_readable(tensor: torch.Tensor) -> bool:
    """Whether ``tensor`` is torch's own, or quantized by the host. Other projects have formats of theirs."""
    return is_quantized_by_host(tensor) or type(tensor) in (torch.Tensor, torch.nn.Parameter)


def is_quantized_by_host(tensor: torch.Tensor) -> bool:
    # older hosts have a class of their own
    return isinstance(tensor, (comfy.quant_ops.QuantizedTensor, QuantizedTensor))


def dtype_of_values(tensor: torch.Tensor) -> torch.dtype:
    """The dtype that a stored tensor is read in: its own, or bfloat16 where it is stored in fewer bits."""
    if not tensor.is_floating_point() or (tensor.dtype in SIXTEEN_BIT and not is_quantized_by_host(tensor)):
        return tensor.dtype
    return VALUES


def values(module: torch.nn.Module, weight: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What the ``weight`` of a linear ``module`` stands for, on ``device``: itself, or read by the host's own means."""
    read = weight.detach().to(device)
    if hasattr(module, "convert_weight"):
        # scaled fp8
        read = module.convert_weight(read, inplace=False)
    if is_quantized_by_host(read):
        read = read.dequantize()
    return read.to(dtype_of_values(weight))
