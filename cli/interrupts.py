"""Ctrl-C, SIGTERM and SIGHUP, not lost even where Python drops the exception that they raise."""

from __future__ import annotations

import signal
import threading

_came = threading.Event()


def stop_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, so that a host which this program runs is stopped.

    Python prints and drops an exception that is raised in a finalizer or a weak reference's callback, where a signal
    may find it. What waits for long calls `raise_if_interrupted` now and then.
    """

    def interrupt(*_) -> None:
        _came.set()
        raise KeyboardInterrupt

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), interrupt)


def raise_if_interrupted() -> None:
    """Raise the KeyboardInterrupt of a signal that came before, once."""
    if _came.is_set():
        _came.clear()
        raise KeyboardInterrupt
