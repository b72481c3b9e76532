"""Triton kernels launched without what Triton does again at each launch."""

from __future__ import annotations

from collections.abc import Hashable

import torch

ALIGNMENT = 16  # bytes; Triton compiles anew for pointers that are no multiples of it


class Launcher:
    """A Triton kernel that is launched directly once it has been compiled for such arguments.

    Triton describes all arguments in a key of text before it finds the compiled kernel, which takes longer than the
    launch itself, hundreds of times a step.
    """

    def __init__(self, kernel):
        self.kernel = kernel
        self.launches = {}

    def __call__(self, programs: int, key: Hashable | None, *arguments, **options) -> None:
        """Launch so many ``programs``.

        Args:
            key: what tells apart all that Triton compiles anew for, and ``programs``: the device, types, which
                arguments are None, numbers and constants, options. None: Triton has to look itself.
            arguments: all that the kernel takes, constants too, in its order.
            options: ``num_warps`` and the like.
        """
        launch = self.launches.get(key)
        if launch is not None:
            launch(*arguments)
            return
        compiled = self.kernel[(programs,)](*arguments, **options)
        if key is not None and compiled is not None:  # the interpreter compiles nothing
            self.launches[key] = compiled[programs, 1, 1]


def aligned(*tensors: torch.Tensor) -> bool:
    """Whether all of them begin where Triton expects it of every tensor that it has not looked at."""
    addresses = 0
    for tensor in tensors:
        addresses |= tensor.data_ptr()
    return addresses % ALIGNMENT == 0


# Triton's own cdiv and next_power_of_2 are made for kernels, and take as long as a launch elsewhere.


def ceil_div(a: int, b: int) -> int:
    """
    >>> ceil_div(9, 4)
    3
    """
    return -(-a // b)


def power_of_2(least: int) -> int:
    """
    >>> power_of_2(9)
    16
    """
    return 1 << (least - 1).bit_length()
