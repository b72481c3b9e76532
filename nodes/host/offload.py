"""Packed weights that wait in main memory: pinned there, and copied to the device beside the work of earlier layers."""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
from collections.abc import Iterator

import comfy.model_management as memory
import torch
from comfy_kitchen.tensor import QuantizedTensor

from ...quant_core.layouts import is_packed, plain_tensors

ALIGNMENT = 64  # bytes, as the CPU allocator of torch has it


@contextlib.contextmanager
def borrowed(
    weight: torch.Tensor, bias: torch.Tensor | None, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Copies of both on ``device`` for the time of one product.

    They are made on one of the host's offload streams, which runs ahead of the products.
    """
    stream = memory.get_offload_stream(device)
    with _on(stream):
        weight = copied(weight, device)
        bias = None if bias is None else copied(bias, device)
    memory.sync_stream(device, stream)
    yield weight, bias
    if stream is not None:
        # the stream's next copy may take the place of these
        stream.wait_stream(memory.current_stream(device))


def copied(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``tensor``, packed or plain, on another device. From pinned memory the copying does not wait."""
    non_blocking = memory.device_supports_non_blocking(device)
    return with_plain_tensors(tensor, [part.to(device, non_blocking=non_blocking) for part in plain_tensors(tensor)])


def pinned(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A packed weight with all its data in one block of pinned memory, and that block.

    The block begins and ends with a page, because CUDA registers whole pages and refuses one for the second time.

    Returns:
        None where the host does not pin: no such device, its option, or its limit.
    """
    if getattr(memory, "MAX_PINNED_MEMORY", -1) <= 0 or tensor.device.type != "cpu":
        return None
    block = block_for(tensor)
    # of other classes the host pins nothing
    if not memory.pin_memory(torch.nn.Parameter(block, requires_grad=False)):
        return None
    return placed(tensor, block), block


def block_for(tensor: torch.Tensor) -> torch.Tensor:
    """Whole pages of memory, uint8, with room for the data of ``tensor``."""
    size = sum(_room(part) for part in plain_tensors(tensor))
    return torch.frombuffer(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE), dtype=torch.uint8)


def placed(tensor: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """A copy of ``tensor`` that has its data in ``block``."""
    copies, at = [], 0
    for part in plain_tensors(tensor):
        place = block[at : at + part.nbytes].view(part.dtype).view(part.shape)
        copies.append(place.copy_(part))
        at += _room(part)
    return with_plain_tensors(tensor, copies)


def with_plain_tensors(tensor: torch.Tensor, parts: list[torch.Tensor]) -> torch.Tensor:
    """``tensor`` with other tensors of the same sizes as :func:`plain_tensors`."""
    if not is_packed(tensor):
        return parts[0]
    data, *statistics = parts
    fields = dict(zip(tensor._params._tensor_fields(), statistics, strict=True))
    return QuantizedTensor(data, tensor._layout_cls, dataclasses.replace(tensor._params, **fields))


def _room(part: torch.Tensor) -> int:
    return -(-part.nbytes // ALIGNMENT) * ALIGNMENT


def _on(stream) -> contextlib.AbstractContextManager:
    """The host's streams say how they are entered."""
    if stream is None:
        return contextlib.nullcontext()
    return stream.as_context(stream) if hasattr(stream, "as_context") else stream
