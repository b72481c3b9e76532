"""One tensor of a model, made of one or more tensors of a checkpoint."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from .checkpoint import Reader
from .layouts import concatenate, dequantize, swap_halves
from .layouts.four_bit import FourBitLayout
from .stored import StoredTensor
from .stored.four_bit import FourBit
from .stored.int8 import Int8


@dataclass(frozen=True)
class Assembly:
    """The rows of ``parts`` under each other; with ``swapped``, the halves of them all trade places.

    Packed parts stay packed where their blocks fit together; where they do not (one was left at 16 bit, another has
    its own blocksize), the whole is dequantized. Either way the values are those of the dequantized parts, bit for bit.
    """

    parts: tuple[StoredTensor, ...]
    swapped: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.parts[0].shape
        return (sum(part.shape[0] for part in self.parts), *first[1:]) if first else first

    @property
    def dtype(self) -> torch.dtype | None:
        """The one that holds the values of every part exactly; None if torch does not know a part's."""
        # LLM.int8() files do not say which dtype their weights had; plain parts beside them do
        known = [part.dtype for part in self.parts if not isinstance(part, Int8)] or [self.parts[0].dtype]
        return None if None in known else functools.reduce(torch.promote_types, known)

    @property
    def name(self) -> str:
        """As the file calls it, for messages."""
        return self.parts[0].name if len(self.parts) == 1 else f"{self.parts[0].name} … {self.parts[-1].name}"

    @property
    def packing(self) -> str | None:
        """How the result is packed; None if it is not."""
        packings = {part.packing for part in self.parts}
        if len(packings) > 1 or None in packings:
            return None
        if isinstance(self.parts[0], FourBit):
            pieces = [(part.shape, part.quant_type, part.blocksize) for part in self.parts]
            if self.swapped:
                # what is moved are two pieces of half the rows
                (rows, columns), *recipe = self.shape, *pieces[0][1:]
                pieces = [((rows // 2, columns), *recipe)] * 2
            if not FourBitLayout.concatenable(pieces):
                return None
        return packings.pop()

    @property
    def unpacked(self) -> bool:
        """Whether packed parts have to be dequantized."""
        return self.packing is None and any(part.packing for part in self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes that :meth:`read` gives."""
        if self.packing is None:
            return torch.Size(self.shape).numel() * self.dtype.itemsize
        if self.swapped or len(self.parts) > 1:
            return sum(part.expanded_nbytes for part in self.parts)
        return self.parts[0].nbytes

    def read(self, reader: Reader, device: torch.device) -> torch.Tensor:
        """The tensor on ``device``, packed or plain."""
        parts = [part.read(reader, device) for part in self.parts]
        if self.packing is None:
            # each by itself in its own dtype first: a wider one would skip the rounding that its values have had
            own = [self.dtype if isinstance(part, Int8) else part.dtype for part in self.parts]
            parts = [dequantize(part, dtype).to(self.dtype) for part, dtype in zip(parts, own, strict=True)]
        whole = _require(concatenate(parts))
        return _require(swap_halves(whole)) if self.swapped else whole


def _require(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise RuntimeError("packed parts that were found to fit together do not")
    return tensor
