"""LoRA as two low-rank matrices beside a layer, whose packed weight is never touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

# Ranks are padded with zeros to one of these, so that another LoRA seldom means another shape, and never one that a
# compiled model has to be compiled for again.
RANKS = (16, 32, 64, 128, 256, 384, 512, 768, 1024)


@dataclass(frozen=True)
class Branch:
    """``scale * up @ down``, to be added to the rows of a weight that begin at ``start``.

    Attributes:
        down: (rank, columns).
        up: (rows, rank).
    """

    down: torch.Tensor
    up: torch.Tensor
    scale: float
    start: int = 0


@dataclass(frozen=True)
class LowRank:
    """What all branches of one layer add to its output: ``x @ down.T @ up.T``.

    Attributes:
        down: (rank, columns).
        up: (rows, rank), scaled; zero in rows that a branch does not reach.
    """

    down: torch.Tensor
    up: torch.Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def nbytes(self) -> int:
        return self.down.nbytes + self.up.nbytes

    def to(self, *args, **kwargs) -> LowRank:
        return LowRank(self.down.to(*args, **kwargs), self.up.to(*args, **kwargs))

    def of(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """What the branches make of ``x (..., columns)``, plus ``bias (rows,)``: ``(..., rows)``."""
        return torch.nn.functional.linear(torch.nn.functional.linear(x, self.down), self.up, bias)

    def add_to(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """``y (..., rows)``, which is overwritten, plus what the branches make of ``x (..., columns)``."""
        inner = torch.nn.functional.linear(x.reshape(-1, x.shape[-1]), self.down)
        y.view(-1, y.shape[-1]).addmm_(inner, self.up.t())
        return y


def merge(branches: Sequence[Branch], rows: int, dtype: torch.dtype, device: torch.device) -> LowRank | None:
    """One pair of matrices on ``device`` for all ``branches`` of a layer with ``rows`` outputs.

    Branches of the same matrices are counted together first, so that +s and -s of one LoRA leave nothing at all, not
    even rounding. None if nothing is left.
    """
    branches = [branch for branch in _counted_together(branches) if branch.scale]
    if not branches:
        return None
    rank = padded_rank(sum(branch.down.shape[0] for branch in branches))
    down = torch.zeros(rank, branches[0].down.shape[1], dtype=dtype, device=device)
    up = torch.zeros(rows, rank, dtype=dtype, device=device)
    at = 0
    for branch in branches:
        end = at + branch.down.shape[0]
        down[at:end] = branch.down
        up[branch.start : branch.start + branch.up.shape[0], at:end] = branch.up.to(device).float() * branch.scale
        at = end
    return LowRank(down, up)


def merged_nbytes(branches: Sequence[Branch], rows: int, dtype: torch.dtype) -> int:
    """Bytes that :func:`merge` takes at most."""
    if not branches:
        return 0
    rank = padded_rank(sum(branch.down.shape[0] for branch in branches))
    return rank * (rows + branches[0].down.shape[1]) * dtype.itemsize


def padded_rank(rank: int) -> int:
    """The rank that matrices are padded to.

    >>> padded_rank(20)
    32
    """
    return next((padded for padded in RANKS if padded >= rank), -(-rank // RANKS[-1]) * RANKS[-1])


def _counted_together(branches: Sequence[Branch]) -> list[Branch]:
    together: list[Branch] = []
    for branch in branches:
        for i, other in enumerate(together):
            if branch.start == other.start and same(branch.up, other.up) and same(branch.down, other.down):
                together[i] = replace(other, scale=other.scale + branch.scale)
                break
        else:
            together.append(branch)
    return together


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two matrices are the same numbers in the same dtype."""
    if a is b or a.shape != b.shape or a.dtype != b.dtype:
        return a is b
    # most differ at once, and there are hundreds to compare
    return torch.equal(a.flatten()[:64], b.flatten()[:64]) and torch.equal(a, b)
