"""Two state dicts that hold the same, packed bytes and statistics included."""

from collections.abc import Mapping

import torch
from quantflux.quant_core.layouts import is_packed, plain_tensors


def require_same_bits(ours: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor], same_origin: bool = True):
    """The same names, and under each the same shape, dtypes and bits.

    ``same_origin``: packed weights were made of one dtype too. Files of int8 do not tell of which.
    """
    assert ours.keys() == others.keys()
    for name, tensor in ours.items():
        other = others[name]
        assert tensor.shape == other.shape and is_packed(tensor) == is_packed(other), name
        assert tensor.dtype == other.dtype or (is_packed(tensor) and not same_origin), name
        for part, other_part in zip(plain_tensors(tensor), plain_tensors(other), strict=True):
            assert part.dtype == other_part.dtype and torch.equal(part, other_part), name
