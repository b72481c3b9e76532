"""Times of kernels, and the records that the 4-bit ones are printed in."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator

import torch


def milliseconds(run: Callable[[], object], repeat: int = 10) -> float:
    """Median of ``repeat`` runs between events.

    Before each the L2 cache is overwritten, for so long that all of the run is launched before it begins.
    """
    flush = torch.empty(64 * 2**20, dtype=torch.int32, device="cuda")
    for _ in range(2):
        run()
    times = []
    for _ in range(repeat):
        for _ in range(6):
            flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return sorted(start.elapsed_time(end) for start, end in times)[repeat // 2]


def copy_speed() -> int:
    """Gigabytes a second, read and written, of a copy on the device."""
    source, target = (torch.empty(2**29, dtype=torch.uint8, device="cuda") for _ in range(2))
    return round(2**30 / milliseconds(lambda: target.copy_(source)) / 1e6)


class Report:
    """Prints and keeps the records; knows the best time of each way at each shape."""

    def __init__(self, path: str | None, seconds: float):
        self._file = open(path, "w") if path else None
        self._end = time.monotonic() + seconds
        self.best: dict[tuple, float] = {}

    @property
    def late(self) -> bool:
        return time.monotonic() > self._end

    def write(self, **record):
        line = json.dumps(record)
        print(line, flush=True)
        if self._file:
            self._file.write(line + "\n")
            self._file.flush()

    def attempt(self, make: Callable[[], dict]):
        """Write what ``make`` gives, or why it fails."""
        try:
            self.write(**make())
        except Exception as error:
            self.write(error=f"{type(error).__name__}: {error}"[:300])

    def time_all(self, shape: tuple[int, int], tokens: int | None, ways: Iterator[tuple]):
        try:
            for way in ways:
                self.time(shape, tokens, *way)
        except Exception as error:
            self.write(rows=shape[0], columns=shape[1], tokens=tokens, error=f"{type(error).__name__}: {error}"[:300])

    def time(self, shape: tuple[int, int], tokens: int | None, way: str, launch, run, moved: int | None):
        if self.late:
            return
        described = dataclasses.asdict(launch) if dataclasses.is_dataclass(launch) else launch
        record = {"rows": shape[0], "columns": shape[1], "tokens": tokens, "way": way, "launch": described}
        try:
            ms = milliseconds(run)
        except Exception as error:
            torch.cuda.synchronize()
            self.write(**record, error=f"{type(error).__name__}: {error}"[:300])
            return
        key = (*shape, tokens, way)
        self.best[key] = min(ms, self.best.get(key, ms))
        speed = {} if moved is None else {"gb_s": round(moved / ms / 1e6)}
        self.write(**record, ms=round(ms, 4), **speed)

    def sums(self, name: str, shapes: dict[tuple[int, int, int], int]):
        """Of the best times, over the shapes as often as they come; what is not known of each shape is left out."""
        ways = {key[3] for key in self.best}
        total = {}
        for way in sorted(ways):
            times = []
            for (rows, columns, tokens), count in shapes.items():
                found = self.best.get((rows, columns, tokens, way), self.best.get((rows, columns, None, way)))
                if found is not None:
                    times.append(found * count)
            if len(times) == len(shapes):
                total[way] = round(sum(times), 2)
        self.write(sums=name, milliseconds=total)
