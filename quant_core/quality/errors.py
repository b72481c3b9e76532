"""How far one tensor is from another."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

CHUNK = 1 << 22  # numbers at a time: 32 MiB in float64, beside tensors of any size
WITHOUT_FLOAT64 = ("mps", "xpu")  # some devices of these kinds have none


class Comparison:
    """Sums over pairs of tensors, in float64, that say how far all of them together are apart."""

    def __init__(self):
        self._reference = self._other = self._product = self._difference = 0.0

    def add(self, reference: torch.Tensor, other: torch.Tensor, pause: Callable[[], None] = lambda: None) -> Comparison:
        """Take in a pair of tensors of one shape, on the device of ``reference``.

        Args:
            pause: called now and then; what it raises ends the comparison.

        Raises:
            ValueError: the shapes differ.
        """
        if reference.shape != other.shape:
            raise ValueError(f"Tensors of {tuple(reference.shape)} and {tuple(other.shape)} cannot be compared.")
        device = torch.device("cpu") if reference.device.type in WITHOUT_FLOAT64 else reference.device
        for a, b in zip(reference.reshape(-1).split(CHUNK), other.reshape(-1).split(CHUNK), strict=True):
            pause()
            a, b = a.to(device).double(), b.to(device).double()
            difference = b - a
            self._reference += float(a.dot(a))
            self._other += float(b.dot(b))
            self._product += float(a.dot(b))
            self._difference += float(difference.dot(difference))
        return self

    def include(self, pairs: Comparison) -> None:
        """Take in all that ``pairs`` has taken in."""
        self._reference += pairs._reference
        self._other += pairs._other
        self._product += pairs._product
        self._difference += pairs._difference

    @property
    def relative_error(self) -> float:
        """``||other - reference|| / ||reference||``: see :func:`relative_error`."""
        if self._difference == 0:
            return 0.0
        return math.sqrt(self._difference / self._reference) if self._reference else math.inf * self._difference

    @property
    def cosine(self) -> float:
        """The cosine of the angle between the two: see :func:`cosine`."""
        if self._difference == 0:
            return 1.0
        return self._product / math.sqrt(self._reference * self._other) if self._reference * self._other else math.nan


def relative_error(reference: torch.Tensor, other: torch.Tensor) -> float:
    """``||other - reference|| / ||reference||``, of tensors of one shape (Frobenius norms, summed in float64).

    Returns:
        0.0 exactly where the two are equal, all zeros too; infinity where only the reference is all zeros; NaN where
        either holds a value that is not finite.

    Raises:
        ValueError: the shapes differ.

    >>> relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5]))
    0.1
    """
    return Comparison().add(reference, other).relative_error


def cosine(reference: torch.Tensor, other: torch.Tensor) -> float:
    """The cosine of the angle between two tensors of one shape.

    Returns:
        1.0 exactly where the two are equal; NaN where one is all zeros, or holds a value that is not finite.

    Raises:
        ValueError: the shapes differ.
    """
    return Comparison().add(reference, other).cosine


def snr_db(error: float) -> float:
    """A relative error as a signal-to-noise ratio in dB: infinity where there is no error.

    >>> snr_db(0.01)
    40.0
    """
    return -20 * math.log10(error) if error else math.inf
