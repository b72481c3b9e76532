"""Which part of a model the host keeps on the device."""

from __future__ import annotations

from collections.abc import Sequence


def resident_nbytes(modules: Sequence[int], room: float, buffers: int) -> int:
    """Bytes of the modules that stay on the device.

    The host takes a model whole if it is smaller than ``room``. Otherwise it goes through the modules, the largest
    first, and takes each that still leaves room for the largest offloaded one, ``buffers`` times.
    Source: ``partially_load`` and ``load`` in the host's comfy/model_patcher.py.

    Args:
        modules: bytes of each.
        room: bytes for weights.
        buffers: layers that are on their way to the device at one time.

    >>> resident_nbytes([4, 2, 2], 9, 2), resident_nbytes([4, 2, 2], 7, 1)
    (8, 2)
    """
    if sum(modules) < room:
        return sum(modules)
    resident = buffer = 0
    for size in sorted(modules, reverse=True):
        needed = max(buffer, size * buffers)
        if resident + size + needed < room:
            resident += size
        else:
            buffer = needed
    return resident
