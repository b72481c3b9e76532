"""Triton kernels launched without what Triton does again at each launch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable

import torch

ALIGNMENT = 16  # bytes; Triton compiles anew for pointers that are no multiples of it
# Rows of up to so many are quantized by what compiles a graph: it joins that with what makes them. Longer ones it would
# make twice.
IN_GRAPH_COLUMNS = 4096
_GRAPHS_TAKE = ("num_warps", "num_stages")  # of a launch's options


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
            options: ``num_warps`` and the like. A compiled graph, of which the kernel becomes a part, takes
                ``num_warps`` and ``num_stages`` alone.
        """
        if torch.compiler.is_dynamo_compiling():
            self.kernel[(programs,)](*arguments, **{name: options[name] for name in options if name in _GRAPHS_TAKE})
            return
        launch = self.launches.get(key)
        if launch is not None:
            launch(*arguments)
            return
        compiled = self.kernel[(programs,)](*arguments, **options)
        if key is not None and compiled is not None:  # the interpreter compiles nothing
            self.launches[key] = _direct(compiled, programs)


def _direct(compiled, programs: int) -> Callable[..., None]:
    """``compiled[programs, 1, 1]`` for the current device, but for what Triton's profilers hook into.

    Inductor launches Triton's kernels so, too.
    """
    import triton

    driver = triton.runtime.driver.active
    device, stream = driver.get_current_device(), driver.get_current_stream
    run, function, metadata = compiled.run, compiled.function, compiled.packed_metadata

    def launch(*arguments):
        run(programs, 1, 1, stream(device), function, metadata, None, None, None, *arguments)

    return launch


def aligned(*tensors: torch.Tensor) -> bool:
    """Whether all of them begin where Triton expects it of every tensor that it has not looked at."""
    if torch.compiler.is_dynamo_compiling():
        return False  # there are no addresses yet, and who compiles looks at them
    addresses = 0
    for tensor in tensors:
        addresses |= tensor.data_ptr()
    return addresses % ALIGNMENT == 0


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """Triton launches on the current device, which need not be that of the tensors. A compiled graph knows its own."""
    in_graph = torch.compiler.is_dynamo_compiling()
    if in_graph or not tensor.is_cuda or tensor.get_device() == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device_of(tensor)


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
