"""The most bytes that tensors hold at one time while a function runs.

On the ``meta`` device a model of full size runs in a moment and holds nothing, and its tensors come and go as they do
on a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Counts the storages that are made while it is entered, until they are freed.

    Attributes:
        peak: most bytes that lived at one time.
        at: the operator that made the storage with which ``peak`` was reached.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.at = ""
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage(), str(func))
        return result

    def know(self, *tensors: torch.Tensor):
        """Tensors that are there already, and not to be counted."""
        self._seen |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def _count(self, storage: torch.UntypedStorage, operator: str):
        key = storage._cdata
        if key in self._seen:
            return
        self._seen.add(key)
        size = storage.nbytes()
        weakref.finalize(storage, self._free, key, size)
        self.live += size
        if self.live > self.peak:
            self.peak, self.at = self.live, operator

    def _free(self, key: int, size: int):
        self._seen.discard(key)
        self.live -= size


class FusedKernels(TorchFunctionMode):
    """Lets attention and RMS norm make what their fused GPU kernels make: their result alone.

    Elsewhere they are put together from many operators, with temporaries that no GPU has.
    """

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, _, value = args[:3]
            # (batch, heads, tokens, channels), in memory as (batch, tokens, heads, channels)
            batch, heads, tokens, _ = query.shape
            return query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)
        if func is torch.nn.functional.rms_norm:
            return torch.empty_like(args[0], memory_format=torch.contiguous_format)
        return func(*args, **kwargs)
