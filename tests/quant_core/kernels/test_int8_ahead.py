"""What is compiled ahead of the first int8 product: what it takes, in threads, and without harm where that fails."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from quantflux.quant_core.kernels import int8, int8_ahead, triton_available
from quantflux.quant_core.kernels.int8_ahead import compile_ahead, wait

GPU = torch.cuda.is_available() and triton_available(torch.device("cuda", 0))
DEVICE = torch.device("cuda", 0)  # a name; there need not be one


@pytest.fixture(autouse=True)
def nothing_begun(monkeypatch):
    monkeypatch.setattr(int8_ahead, "_begun", {})


@pytest.fixture
def tasks(monkeypatch):
    """What is compiled, in the order of calls: set it to functions."""
    made = []
    monkeypatch.setattr(int8_ahead, "triton_available", lambda device: True)
    monkeypatch.setattr(int8_ahead, "_tasks", lambda *about: [*made])
    return made


def test_nothing_begins_where_our_kernels_do_not_run():
    compile_ahead(torch.device("cpu"), torch.bfloat16, 6.0)
    assert not int8_ahead._begun
    wait()


def test_tasks_run_beside_each_other_and_are_waited_for(tasks):
    together, done = threading.Barrier(2, timeout=30), []

    def task():
        together.wait()
        done.append(threading.current_thread())

    tasks += [task, task]
    compile_ahead(DEVICE, torch.bfloat16, 6.0)
    wait()
    assert len(set(done)) == 2 and threading.current_thread() not in done


def test_each_is_begun_once(tasks):
    done = []
    tasks.append(lambda: done.append(1))
    for threshold in (6.0, 3.0, 0.0, 6.0):
        compile_ahead(DEVICE, torch.bfloat16, threshold)
    wait()
    # with a threshold and without: which one it is makes no other kernel
    assert len(done) == 2


def test_what_fails_is_left_to_who_needs_it(tasks, caplog):
    def fail():
        raise RuntimeError("no compiler")

    done = []
    tasks += [fail, lambda: done.append(1)]
    compile_ahead(DEVICE, torch.bfloat16, 6.0)
    with caplog.at_level("DEBUG"):
        wait()
    assert done and "no compiler" in caplog.text


def test_who_asks_whether_the_kernels_work_waits_first(tasks, monkeypatch):
    released, order = threading.Event(), []
    tasks.append(lambda: (released.wait(30), order.append("compiled")))
    compile_ahead(DEVICE, torch.bfloat16, 6.0)
    monkeypatch.setattr(int8, "triton_available", lambda device: True)
    triton_part = type(sys)("int8_triton")
    triton_part.plain_triton_works = lambda device, outliers: order.append("asked") or True
    monkeypatch.setitem(sys.modules, f"{int8.__package__}.int8_triton", triton_part)
    threading.Timer(0.1, released.set).start()
    assert int8._ours_were_seen_to_work.__wrapped__(DEVICE, True)
    assert order == ["compiled", "asked"]


COMPILES_NOTHING_MORE = """
import os, pathlib, torch
from quantflux.quant_core.kernels import int8_ahead
from quantflux.quant_core.kernels.int8 import int8_linear

device, threshold = torch.device("cuda", 0), {threshold}
int8_ahead.compile_ahead(device, torch.bfloat16, threshold)
int8_ahead.wait()
failed = [error for tasks in int8_ahead._begun.values() for task in tasks if (error := task.exception())]
assert not failed, failed

def kept():
    return sorted(path.name for path in pathlib.Path(os.environ["TRITON_CACHE_DIR"]).rglob("*.cubin"))

ahead = kept()
assert "_quantize_rows.cubin" in ahead, ahead
x = torch.randn(4352, 12288, device=device).bfloat16()
for tokens in (1, 256, 4352):
    for rows, columns in ((9216, 3072), (12288, 3072), (3072, 12288)):
        weight = torch.zeros(rows, columns, dtype=torch.int8, device=device)
        scale, bias = torch.zeros(rows, device=device), torch.zeros(rows, dtype=torch.bfloat16, device=device)
        int8_linear(x[:tokens, :columns].contiguous(), weight, scale, bias, threshold)
assert kept() == ahead, (ahead, kept())
"""


@pytest.mark.skipif(not GPU, reason="Triton compiles for a CUDA GPU")
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_flux_takes_no_other_kernel(threshold, tmp_path):
    program = COMPILES_NOTHING_MORE.format(threshold=threshold)
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
