import signal
import subprocess
import sys

import pytest
from quantflux.cli.interrupts import raise_if_interrupted

DROPPED = """
import os, signal
from quantflux.cli.interrupts import raise_if_interrupted, stop_on_signals

class Interrupting:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        for _ in range(1000):
            pass  # Python runs the handler between two of its instructions

stop_on_signals()
Interrupting()
print("went on")
try:
    raise_if_interrupted()
except KeyboardInterrupt:
    print("raised")
raise_if_interrupted()
print("once")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_that_python_dropped_is_raised_later(name):
    if not hasattr(signal, name):
        pytest.skip(f"this system has no {name}")
    ended = subprocess.run(
        [sys.executable, "-c", DROPPED.format(name=name)], capture_output=True, text=True, check=True
    )
    assert ended.stdout.split("\n") == ["went on", "raised", "once", ""]
    assert "KeyboardInterrupt" in ended.stderr


def test_nothing_is_raised_without_a_signal():
    raise_if_interrupted()
