"""Bytes of a model: before loading, from its header, and after."""

from __future__ import annotations

import bisect
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from .layouts import is_packed, packed_nbytes, plain_tensors
from .lora import LowRank
from .source import Source

PACKED, STATISTICS, SKIPPED = "packed linears", "their statistics", "linears, not packed"
BIASES, NORMS, EMBEDDINGS, CONVOLUTIONS, OTHER = "biases", "norms", "embeddings", "convolutions", "other"
LORA, ORIGINALS = "LoRA branches", "originals of patched"
GROUPS = (PACKED, STATISTICS, SKIPPED, EMBEDDINGS, CONVOLUTIONS, NORMS, BIASES, OTHER, LORA, ORIGINALS)
GPU, CPU, MAPPED = "GPU", "CPU", "mapped file"


def planned_nbytes(source: Source) -> int:
    """Bytes that the model of ``source`` will take."""
    total = 0
    for name, tensor in source.tensors.items():
        recipe = source.packed.get(name)
        total += tensor.nbytes if recipe is None else packed_nbytes(tensor.shape, recipe)
    return total


def largest_weight_nbytes(source: Source) -> int:
    """Bytes of the largest tensor at 16 bit: what quantizing, or multiplying by it, needs besides the model."""
    return max(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in source.tensors.values())


def model_nbytes(tensors: Iterable[torch.Tensor]) -> tuple[int, int]:
    """(bytes now, bytes at 16 bit) of a model's tensors."""
    now = at_16_bit = 0
    for tensor in tensors:
        now += sum(part.nbytes for part in _with_storage(tensor))
        at_16_bit += 2 * tensor.numel()
    return now, at_16_bit


@dataclass(frozen=True)
class Held:
    """Tensors of one kind that a component holds in one place.

    Attributes:
        component: as it is shown, such as ``T5``.
        group: one of ``GROUPS``.
        place: ``GPU``, ``CPU``, or ``mapped file``: pages of a file, which the system reads and drops as it needs to.
        nbytes: bytes that they take.
        nbytes_16bit: bytes that the weights they stand for take at 16 bit; statistics stand for none.
    """

    component: str
    group: str
    place: str
    nbytes: int
    nbytes_16bit: int


@dataclass
class _Storage:
    """Attributes:
    sums: of the group that its first tensor is in, which has all its bytes but those of other tensors.
    left: bytes that no tensor accounts for so far.
    """

    sums: list[int]
    left: int


class Inventory:
    """What is held by the components that are added, each storage counted once and at its full size.

    Where several tensors lie in one storage, as those of a pinned weight do, each counts its own bytes, and the first
    also those that belong to none.
    """

    def __init__(self):
        self._maps = _file_maps()
        self._tensors: set[tuple] = set()
        self._storages: dict[tuple, _Storage] = {}
        self._found: dict[tuple[str, str, str], list[int]] = {}

    def add(self, component: str, module: torch.nn.Module, originals: Iterable[torch.Tensor] = ()):
        """Add the tensors of ``module``, and ``originals``: weights that are kept while patched ones replace them."""
        for group, tensor, stands_for in _grouped(module, originals):
            pointer = tensor.data_ptr()
            place = self._place(tensor, pointer)
            if place == MAPPED:
                # all tensors of a file share one storage, the file
                storage, size = (tensor.device, pointer), tensor.nbytes
            else:
                whole = tensor.untyped_storage()
                storage, size = (tensor.device, whole.data_ptr()), whole.nbytes()
            one = (*storage, pointer, tuple(tensor.shape))
            if not size or one in self._tensors:
                continue
            self._tensors.add(one)
            known = self._storages.get(storage)
            if known is not None and tensor.nbytes > known.left:
                continue  # it lies over one that is counted
            sums = self._found.setdefault((component, group, place), [0, 0])
            if known is None:
                self._storages[storage] = _Storage(sums, size - tensor.nbytes)
                sums[0] += size
            else:
                known.left -= tensor.nbytes
                known.sums[0] -= tensor.nbytes
                sums[0] += tensor.nbytes
            sums[1] += 2 * stands_for

    def held(self) -> list[Held]:
        """Component after component, in the order of ``GROUPS``."""
        components = list(dict.fromkeys(component for component, *_ in self._found))
        order = sorted(self._found, key=lambda key: (components.index(key[0]), GROUPS.index(key[1]), key[2]))
        return [Held(*key, *self._found[key]) for key in order]

    def _place(self, tensor: torch.Tensor, pointer: int) -> str:
        if tensor.device.type != "cpu":
            return GPU
        at = bisect.bisect_right(self._maps, (pointer, math.inf)) - 1
        return MAPPED if at >= 0 and pointer < self._maps[at][1] else CPU


def _grouped(module: torch.nn.Module, originals: Iterable[torch.Tensor]) -> Iterator[tuple[str, torch.Tensor, int]]:
    """(group, plain tensor, number of weights that it stands for) of everything that ``module`` holds."""
    for layer in module.modules():
        tensors = [*layer._parameters.items(), *layer._buffers.items()]
        for name, tensor in tensors:
            if tensor is not None:
                yield from _parts(_group(layer, name), tensor)
        low_rank = getattr(layer, "low_rank", None)
        if isinstance(low_rank, LowRank):
            yield from ((LORA, matrix, matrix.numel()) for matrix in (low_rank.down, low_rank.up))
    for tensor in originals:
        yield from _parts(ORIGINALS, tensor)


def _parts(group: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor, int]]:
    data, *statistics = _with_storage(tensor)
    if group == SKIPPED and statistics:
        group = PACKED
    yield group, data, tensor.numel()
    yield from ((STATISTICS, part, 0) for part in statistics)


def _with_storage(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The tensors that hold the data of ``tensor``, numbers before statistics: of this project's packed weights, of the
    host's scaled fp8, and of what other projects wrap, for a wrapper has no storage of its own."""
    if is_packed(tensor) or not hasattr(tensor, "__tensor_flatten__"):
        return plain_tensors(tensor)
    names, _ = tensor.__tensor_flatten__()
    return tuple(part for name in names for part in _with_storage(getattr(tensor, name)))


def _group(layer: torch.nn.Module, name: str) -> str:
    if name == "bias":
        return BIASES
    if isinstance(layer, torch.nn.Embedding):
        return EMBEDDINGS
    if isinstance(layer, torch.nn.modules.conv._ConvNd):
        return CONVOLUTIONS
    if hasattr(layer, "in_features"):
        return SKIPPED
    # the host has norms of its own
    return NORMS if "norm" in type(layer).__name__.lower() else OTHER


def _file_maps() -> list[tuple[int, int]]:
    """(begin, end) of the files mapped into this process, in order. Only Linux says; elsewhere none is known."""
    if not os.path.exists("/proc/self/maps"):
        return []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        fields = [line.split(maxsplit=5) for line in lines]
    # anonymous memory has no path; devices are not files
    files = [f[0].split("-") for f in fields if len(f) == 6 and f[5][0] == "/" and not f[5].startswith("/dev/")]
    return sorted((int(begin, 16), int(end, 16)) for begin, end in files)


def readable(number_of_bytes: float) -> str:
    """``number_of_bytes`` in MiB or GiB.

    >>> readable(7_194_070_220)
    '6.70 GiB'
    """
    gib = number_of_bytes / 2**30
    return f"{gib:.2f} GiB" if gib >= 1 else f"{number_of_bytes / 2**20:.1f} MiB"
