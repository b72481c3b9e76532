"""The tensors that a file holds of a model, by the names that bitsandbytes gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from ..layouts import dequantize, is_packed

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class TensorSpec:
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Group:
    """Tensors that have to be in one file, such as a packed weight and its statistics.

    Attributes:
        specs: tensor -> what it will be.
        read: makes the tensors, each time anew, so that they need not be kept.
    """

    specs: Mapping[str, TensorSpec]
    read: Callable[[], Tensors]

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.specs.values())


def group(name: str, read: Callable[[], torch.Tensor], plain: TensorSpec | None = None) -> Group:
    """The group of the tensor ``name``, packed or plain, that ``read`` gives.

    Args:
        plain: what that will be, if it is known to be plain; else ``read`` is called once to see, which takes long
            where it unpacks.
    """

    def read_all() -> Tensors:
        return file_tensors(name, read())

    if plain is not None:
        return Group({name: plain}, read_all)
    specs = {key: TensorSpec(tensor.dtype, tuple(tensor.shape)) for key, tensor in read_all().items()}
    return Group(specs, read_all)


def file_tensors(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """``tensor`` as bitsandbytes' state dicts have it: itself if it is plain, else packed bytes and statistics.

    4-bit statistics are named after the weight (``X.weight.absmax``), those of LLM.int8() after the layer (``X.SCB``).
    """
    if not is_packed(tensor):
        return {name: tensor}
    named = tensor.layout_cls.state_dict_tensors(tensor._qdata, tensor._params)
    layer = name.removesuffix(".weight")
    return {layer + suffix if suffix == ".SCB" else name + suffix: part for suffix, part in named.items()}


def unpacked(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor`` as a plain one of the dtype that it was packed from."""
    return dequantize(tensor, tensor.dtype)
