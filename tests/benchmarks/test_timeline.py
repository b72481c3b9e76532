"""What is made of the kernels that a profiler saw."""

import timeline


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
