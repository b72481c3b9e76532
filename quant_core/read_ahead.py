"""Reading a model's files ahead of their use on a GPU: several threads, through pinned memory.

Copying a mapped file to a GPU faults its pages in one by one on one thread, which is slower than either the page cache
or the bus. Here threads read the next pieces into a ring of pinned buffers while the GPU works on the tensors before.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch

from .checkpoint import Reader, changed_file
from .errors import CheckpointError
from .header import DAMAGED_REMEDY, TensorInfo, explained, tensor_places

PIECE = 16 * 2**20  # bytes
PIECES = 24  # pinned at a time, at the most
THREADS = 8
SMALLEST = 2**20  # bytes; below, mapping costs nothing
PATIENCE = 0.5  # seconds without a piece before the caller is asked whether to go on


@dataclass(frozen=True)
class _Piece:
    """Bytes ``start`` to ``stop`` of a file."""

    path: str
    start: int
    stop: int


@dataclass
class _Buffer:
    """Pinned memory, and the copy out of it that has to end before it is written again."""

    data: torch.Tensor
    copied: torch.cuda.Event | None = None


class ReadAhead:
    """A :class:`Reader` that has the tensors ``names`` ready when they are asked for in that order.

    Any other tensor, and any order, works too and is read when asked for. ``pause`` is called while waiting for a slow
    disk; what it raises ends the waiting.

    Raises:
        CheckpointError: a file cannot be read any more, or is not the one whose header is in ``tensors``.
    """

    def __init__(
        self,
        reader: Reader,
        tensors: Mapping[str, TensorInfo],
        names: Iterable[str],
        device: torch.device,
        pause: Callable[[], None] = lambda: None,
    ):
        self._reader = reader
        self._tensors = tensors
        self._device = device
        self._pause = pause
        self._order = deque(name for name in names if _nbytes(tensors[name]) >= SMALLEST)
        self._starts = _starts({name: tensors[name] for name in self._order})
        self._pieces = self._all_pieces()
        self._coming: deque[Future[tuple[_Buffer, int]]] = deque()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="quantflux-read")
        self._files: dict[str, int] = {}
        try:
            for path in {tensors[name].file for name in self._order}:
                with explained(path):
                    self._files[path] = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            pinned = device.type == "cuda"
            for piece in islice(self._pieces, PIECES):
                self._fetch(piece, _Buffer(torch.empty(PIECE, dtype=torch.uint8, pin_memory=pinned)))
        except BaseException:
            self.close()
            raise

    def get_tensor(self, name: str) -> torch.Tensor:
        """As :meth:`Reader.get_tensor`."""
        return self._reader.get_tensor(name)

    def get(self, name: str, device: torch.device) -> torch.Tensor:
        """One tensor on ``device``.

        Raises:
            CheckpointError: the file cannot be read to the end, or is not the one whose header was read.
        """
        if device != self._device or not self._order or self._order[0] != name:
            return self._reader.get(name, device)
        self._order.popleft()
        info = self._tensors[name]
        whole = torch.empty(_nbytes(info), dtype=torch.uint8, device=device)
        filled = 0
        while filled < whole.numel():
            coming = self._coming.popleft()
            while not wait([coming], PATIENCE).done:
                self._pause()
            buffer, size = coming.result()
            whole[filled : filled + size].copy_(buffer.data[:size], non_blocking=True)
            if device.type == "cuda":
                buffer.copied = torch.cuda.Event()
                buffer.copied.record()
            filled += size
            for piece in islice(self._pieces, 1):
                self._fetch(piece, buffer)
        return whole.view(info.dtype).reshape(info.shape)

    def close(self):
        self._pool.shutdown(wait=True, cancel_futures=True)
        for file in self._files.values():
            os.close(file)

    def _all_pieces(self) -> Iterator[_Piece]:
        for name in list(self._order):
            info = self._tensors[name]
            start = self._starts[name]
            stop = start + _nbytes(info)
            for at in range(start, stop, PIECE):
                yield _Piece(info.file, at, min(at + PIECE, stop))

    def _fetch(self, piece: _Piece, buffer: _Buffer):
        self._coming.append(self._pool.submit(self._read, piece, buffer))

    def _read(self, piece: _Piece, buffer: _Buffer) -> tuple[_Buffer, int]:
        if buffer.copied is not None:
            buffer.copied.synchronize()
        size = piece.stop - piece.start
        view = memoryview(buffer.data.numpy())[:size]
        filled = 0
        while filled < size:
            with explained(piece.path):
                got = os.preadv(self._files[piece.path], [view[filled:]], piece.start + filled)
            if got == 0:
                raise CheckpointError(piece.path, "ended while it was read.", DAMAGED_REMEDY)
            filled += got
        return buffer, size


@contextmanager
def read_ahead(
    reader: Reader,
    tensors: Mapping[str, TensorInfo],
    names: Iterable[str],
    device: torch.device,
    pause: Callable[[], None] = lambda: None,
) -> Iterator[Reader | ReadAhead]:
    """``reader``, made to read ``names`` ahead where that is faster: on a GPU, on systems that have ``preadv``.

    Args:
        tensors: headers of the files.
        names: tensors in the order in which they will be asked for.
        pause: called now and then while waiting for the disk; what it raises ends the reading.

    Raises:
        CheckpointError: as :class:`ReadAhead`.
    """
    if device.type != "cuda" or not hasattr(os, "preadv"):
        yield reader
        return
    ahead = ReadAhead(reader, tensors, names, device, pause)
    try:
        yield ahead
    finally:
        ahead.close()


def _nbytes(info: TensorInfo) -> int:
    return math.prod(info.shape) * info.dtype.itemsize if info.dtype else 0


def _starts(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """tensor -> where its bytes begin in its file, whose header is read again.

    Raises:
        CheckpointError: the file cannot be read, or it has another tensor of that name now.
    """
    places = {path: tensor_places(path) for path in {info.file for info in tensors.values()}}
    starts = {}
    for name, info in tensors.items():
        # the number of bytes follows from shape and dtype
        found, starts[name] = places[info.file].get(name, (None, 0))
        if found != info:
            raise changed_file(info.file, name)
    return starts
