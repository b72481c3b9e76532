"""Kernels that become parts of a graph are read once by torch, and not four times for each of their launches."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Mapping

import sympy
import torch
import torch._higher_order_ops.triton_kernel_wrap as wrap

_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool, sympy.Expr)


@contextlib.contextmanager
def kernels_read_once() -> Iterator[None]:
    """Remember what Triton makes of a kernel, while graphs are compiled.

    torch has kernels translated to see which tensors they write. Ten layers of int8 with a threshold are compiled in
    4.4 s, up to the graph's code, which is the same; without this in 6.4 (torch 2.11 on a CPU, 2026-11-30).
    """
    original = getattr(wrap, "generate_ttir", None)
    if original is None:  # a private function: other versions may have another
        yield
        return
    known = {}

    def remembering(kernel, kwargs, tma_descriptor_metadata):
        key = None if tma_descriptor_metadata else _key(kernel, kwargs)
        if key is None:
            return original(kernel, kwargs, tma_descriptor_metadata)
        if key not in known:
            known[key] = original(kernel, kwargs, tma_descriptor_metadata)
        module, names = known[key]
        return module, list(names)

    wrap.generate_ttir = remembering
    try:
        yield
    finally:
        wrap.generate_ttir = original


def _key(kernel, arguments: Mapping[str, object]) -> Hashable | None:
    """What the translation depends on: torch puts a number for each symbol, and an empty tensor for each tensor."""
    described = []
    for name, value in arguments.items():
        if isinstance(value, _NUMBERS):
            described.append((name, "symbol"))
        elif hasattr(value, "dtype"):
            described.append((name, "tensor", value.dtype))
        else:
            described.append((name, type(value), value))  # 1, 1.0 and True are equal
    key = kernel, tuple(described)
    try:
        hash(key)
    except TypeError:
        return None
    return key
