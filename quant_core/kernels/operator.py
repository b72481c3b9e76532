"""Kernels as operators of torch, for compiled models, at the price of a function call everywhere else."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch


def operator(name: str, schema: str, mutates_args: tuple[str, ...] = ()) -> Callable[[Callable], Callable]:
    """Register a function as ``name``, and call it as such only where torch.compile traces.

    torch's dispatcher takes 35 µs for an operator written in Python, hundreds of times a step, and a step on a fast
    card waits for it. The result has ``register_fake``, as ``torch.library.custom_op`` has.
    """

    def register(function: Callable) -> Callable:
        registered = torch.library.custom_op(name, function, mutates_args=mutates_args, schema=schema)

        @functools.wraps(function)
        def call(*args):
            return registered(*args) if torch.compiler.is_compiling() else function(*args)

        call.register_fake = registered.register_fake
        return call

    return register
