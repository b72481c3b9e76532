"""One tensor of a model, made of one or more tensors of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .checkpoint import Reader
from .layouts import concatenate, dequantize, swap_halves
from .layouts.four_bit import FourBitLayout
from .stored import StoredTensor
from .stored.four_bit import FourBit


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
        return self.parts[0].dtype

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
        if self.unpacked:
            return torch.Size(self.shape).numel() * self.dtype.itemsize
        if self.packing and (self.swapped or len(self.parts) > 1):
            return sum(part.expanded_nbytes for part in self.parts)
        return sum(part.nbytes for part in self.parts)

    def read(self, reader: Reader, device: torch.device) -> torch.Tensor:
        """The tensor on ``device``, packed or plain."""
        parts = [part.read(reader, device) for part in self.parts]
        if self.unpacked:
            parts = [dequantize(part, self.dtype) for part in parts]
        whole = _require(concatenate(parts))
        return _require(swap_halves(whole)) if self.swapped else whole


def _require(tensor: torch.Tensor | None) -> torch.Tensor:
    if tensor is None:
        raise RuntimeError("packed parts that were found to fit together do not")
    return tensor
