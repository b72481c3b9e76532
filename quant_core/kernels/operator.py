"""Kernels as operators of torch, for compiled models, at the price of a function call everywhere else."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

# Older ones can, too, but were not tried.
GRAPHS_TAKE_KERNELS = torch.__version__ >= (2, 11)


def operator(name: str, schema: str, in_graph: Callable[..., bool] | None = None) -> Callable[[Callable], Callable]:
    """Register a function as ``name``, and call it as such only where torch.compile traces.

    Args:
        in_graph: whether its launches can become parts of a graph instead, for such arguments: inductor starts them
            with less around them. They are compiled without options such as ``enable_fp_fusion``.

    The result has ``register_fake``, as ``torch.library.custom_op`` has, which is not used because what it does around
    each call takes long (0.2 ms in a profile, torch 2.11, on an H100's host, 2026-11-25): a compiled step waits for it
    hundreds of times.
    """

    def register(function: Callable) -> Callable:
        namespace, _, kind = name.partition("::")
        library = _library(name)
        library.define(kind + schema, tags=(torch.Tag.pt2_compliant_tag,))
        library.impl(name, function, "CompositeExplicitAutograd")

        def inlined(*args) -> bool:
            known = GRAPHS_TAKE_KERNELS and in_graph is not None and torch.compiler.is_dynamo_compiling()
            return known and args[0].is_cuda and in_graph(*args)

        @functools.wraps(function)
        def call(*args):
            if torch.compiler.is_compiling() and not inlined(*args):
                return getattr(getattr(torch.ops, namespace), kind)(*args)
            return function(*args)

        def register_fake(fake: Callable) -> Callable:
            return torch.library.register_fake(name, fake, lib=library)

        call.register_fake = register_fake
        return call

    return register


def _library(name: str) -> torch.library.Library:
    """Where ``name`` is registered; what was there goes, since a process may import this project under two names."""
    namespace = name.partition("::")[0]
    # kept where torch keeps the operators
    libraries = vars(getattr(torch.ops, namespace)).setdefault("libraries", {})
    if name in libraries:
        libraries[name]._destroy()
    libraries[name] = torch.library.Library(namespace, "FRAGMENT")
    return libraries[name]
