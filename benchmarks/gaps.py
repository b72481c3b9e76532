"""What the processor asked of CUDA while the GPU idled, from the trace of torch's profiler."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")  # categories of the trace's events
ON_CPU = ("cuda_runtime", "cuda_driver")
SHOWN, PARTS = 20, 6  # gaps, and what is told of each

Span = tuple[float, float, str]  # begin and end in microseconds, name


def spans(trace: dict, categories: Sequence[str], thread: object = None) -> list[Span]:
    """Events of a trace in the order in which they begin, those that contain others first."""
    found = [
        (event["ts"], event["ts"] + event["dur"], event["name"])
        for event in trace["traceEvents"]
        if event.get("ph") == "X" and event.get("cat") in categories and thread in (None, event["tid"])
    ]
    return sorted(found, key=lambda span: (span[0], -span[1]))


def issuing_thread(trace: dict) -> object:
    """The thread that calls CUDA most; None if none does."""
    calls = Counter(event["tid"] for event in trace["traceEvents"] if event.get("cat") == "cuda_runtime")
    return calls.most_common(1)[0][0] if calls else None


def innermost(nested: Sequence[Span]) -> Iterator[Span]:
    """Pieces of time, each with the name of the innermost of ``nested`` then, in their order."""
    stack, now = [], 0.0

    def until(time: float) -> Iterator[Span]:
        nonlocal now
        while stack and stack[-1][0] <= time:
            end, name = stack.pop()
            if end > now:
                yield now, end, name
                now = end
        if stack and time > now:
            yield now, time, stack[-1][1]
        now = max(now, time)

    for begin, end, name in nested:
        yield from until(begin)
        stack.append((end, name))
    yield from until(float("inf"))


def idle(kernels: Iterable[Span]) -> Iterator[tuple[float, float, str, str]]:
    """Where none of ``kernels``, which may overlap, runs: begin, end, and the names of those before and after."""
    last = before = None
    for begin, end, name in sorted(kernels):
        if last is not None and begin > last:
            yield last, begin, before, name
        if last is None or end > last:
            last, before = end, name


def longest_gaps(trace: dict) -> list[dict]:
    """The longest times in which the GPU idled: how long, between which kernels, and what the issuing thread asked of
    CUDA then, in microseconds."""
    found = idle(spans(trace, ON_GPU))
    pieces = list(innermost(spans(trace, ON_CPU, issuing_thread(trace))))
    ends = [end for _, end, _ in pieces]
    gaps = []
    for begin, end, before, after in sorted(found, key=lambda gap: gap[0] - gap[1])[:SHOWN]:
        meanwhile = Counter()
        for piece in pieces[bisect.bisect_right(ends, begin) :]:
            if piece[0] >= end:
                break
            meanwhile[piece[2]] += min(piece[1], end) - max(piece[0], begin)
        told = [[name[-100:], round(us)] for name, us in meanwhile.most_common(PARTS)]
        gaps.append({"us": round(end - begin), "after": before[:60], "before": after[:60], "meanwhile": told})
    return gaps


def longest_calls(trace: dict) -> list[list]:
    """Microseconds and name of the calls of CUDA that took longest."""
    calls = sorted(spans(trace, ON_CPU, issuing_thread(trace)), key=lambda call: call[0] - call[1])
    return [[round(end - begin), name] for begin, end, name in calls[:SHOWN]]
