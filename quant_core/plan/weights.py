"""Bytes of a model's weights and statistics, from its header."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..config import QuantConfig
from ..layouts import packed_nbytes
from ..source import Source
from ..stored.four_bit import FourBit

MIB = 2**20


@dataclass(frozen=True)
class Weights:
    """Bytes of a model.

    Attributes:
        packed: of packed weights.
        statistics: of their absmax values or row scales.
        plain: of everything that is not packed.
    """

    packed: int = 0
    statistics: int = 0
    plain: int = 0

    @property
    def nbytes(self) -> int:
        return self.packed + self.statistics + self.plain


def recipe(source: Source, name: str) -> QuantConfig | None:
    """How the weight ``name`` will be packed; None if it will be plain."""
    tensor = source.tensors[name]
    if name in source.packed or tensor.packing is None:
        return source.packed.get(name)
    part = tensor.parts[0]
    if not isinstance(part, FourBit):
        return dataclasses.replace(source.config, precision="int8")
    # nested statistics are expanded where parts are put together
    nested = part.nested and len(tensor.parts) == 1 and not tensor.swapped
    return QuantConfig(part.quant_type, blocksize=part.blocksize, double_quant=nested)


def weights(source: Source) -> Weights:
    """Bytes of the model of ``source`` once it is loaded."""
    packed = statistics = plain = 0
    for _, data, rest, is_packed in _tensors(source):
        packed += data if is_packed else 0
        plain += 0 if is_packed else data
        statistics += rest
    return Weights(packed, statistics, plain)


def module_sizes(source: Source) -> list[int]:
    """Bytes of each module: what the host moves as one."""
    sizes: dict[str, int] = {}
    for name, data, rest, _ in _tensors(source):
        module = name.rpartition(".")[0]
        sizes[module] = sizes.get(module, 0) + data + rest
    return list(sizes.values())


def rounding(source: Source) -> int:
    """Bytes that torch's CUDA allocator adds to the weights.

    A tensor of 10 MiB or more gets a segment of whole 2 MiB; what is left over is kept with it if it is 1 MiB or less.
    Smaller tensors share segments. Source: kRoundLarge, kMinLargeAlloc and kSmallSize in c10/cuda/CUDACachingAllocator.
    """
    total = 0
    for _, data, _, _ in _tensors(source):
        left = -data % (2 * MIB)
        if data >= 10 * MIB and left <= MIB:
            total += left
    return total


def _tensors(source: Source) -> Iterator[tuple[str, int, int, bool]]:
    """(name, bytes of the data, bytes of the statistics, whether it is packed) of each tensor."""
    for name, tensor in source.tensors.items():
        config = recipe(source, name)
        if config is None:
            yield name, tensor.nbytes, 0, False
            continue
        whole = packed_nbytes(tensor.shape, config) if name in source.packed else tensor.nbytes
        data = math.ceil(math.prod(tensor.shape) / (1 if config.precision == "int8" else 2))
        yield name, data, whole - data, True
