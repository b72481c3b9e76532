"""What is made of the kernels that a profiler saw, and of what the processor did meanwhile."""

import json

import gaps
import timeline
import torch
from torch.profiler import ProfilerActivity, profile


def test_gaps_are_where_no_kernel_runs_and_overlaps_count_once():
    kernels = [(0, 10, "a"), (4, 12, "b"), (13, 20, "a"), (60, 100, "c"), (62, 70, "b")]
    found = timeline.summary(kernels, steps=1)
    assert found["kernel_ms"] == 0.073
    assert found["busy_ms"] == 0.059
    assert found["idle_ms"] == 0.041
    assert found["idle_ms_in_gaps_below_us"] == {"2": 0.001, "4": 0.0, "10": 0.0, "50": 0.04, "500": 0.0, "inf": 0.0}
    assert found["by_name"] == [["c", 1, 0.04], ["a", 2, 0.017], ["b", 2, 0.016]]
    halves = timeline.summary(kernels, steps=2)
    assert halves["kernels"] == 2.5 and halves["by_name"][0] == ["c", 0.5, 0.02]


def test_no_kernels_are_no_time():
    assert timeline.summary([], steps=1)["busy_ms"] == 0


def event(category, begin, end, name, thread=1) -> dict:
    return {"ph": "X", "cat": category, "ts": begin, "dur": end - begin, "name": name, "tid": thread}


def test_pieces_of_time_are_named_by_what_is_innermost():
    nested = [(0, 100, "a"), (10, 60, "b"), (20, 30, "c"), (30, 40, "d"), (120, 130, "e")]
    assert list(gaps.innermost(nested)) == [
        (0, 10, "a"), (10, 20, "b"), (20, 30, "c"), (30, 40, "d"), (40, 60, "b"), (60, 100, "a"), (120, 130, "e"),
    ]  # fmt: skip


def test_a_gap_tells_what_the_issuing_thread_asked_of_cuda():
    trace = {
        "traceEvents": [
            event("kernel", 0, 100, "first", thread=7),
            event("kernel", 50, 80, "within", thread=8),
            event("gpu_memcpy", 400, 410, "copy", thread=7),
            event("kernel", 415, 500, "last", thread=7),
            event("python_function", 0, 450, "step"),
            event("cuda_runtime", 90, 390, "cudaMemcpyAsync"),
            event("cuda_driver", 200, 380, "cuMemcpyHtoDAsync"),
            event("cuda_runtime", 395, 399, "cudaLaunchKernel"),
            event("cuda_runtime", 150, 850, "another thread's", thread=2),
            {"ph": "f", "cat": "ac2g", "ts": 1, "tid": 1, "name": "arrow"},
        ]
    }
    longest, shortest = gaps.longest_gaps(trace)
    assert (longest["us"], longest["after"], longest["before"]) == (300, "first", "copy")
    assert longest["meanwhile"] == [["cuMemcpyHtoDAsync", 180], ["cudaMemcpyAsync", 110], ["cudaLaunchKernel", 4]]
    assert shortest["us"] == 5 and not shortest["meanwhile"]
    calls = [[300, "cudaMemcpyAsync"], [180, "cuMemcpyHtoDAsync"], [4, "cudaLaunchKernel"]]
    assert gaps.longest_calls(trace) == calls


def test_the_trace_of_the_profiler_is_read(tmp_path):
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        torch.ones(8).add_(1)
    profiler.export_chrome_trace(str(tmp_path / "trace.json"))
    found = gaps.spans(json.loads((tmp_path / "trace.json").read_text()), ["cpu_op"])
    assert "aten::add_" in [name for *_, name in found]
