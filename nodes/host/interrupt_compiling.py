"""ComfyUI's cancel button while torch compiles: torch itself asks nobody whether to go on."""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator

import comfy.model_management as memory
from torch._dynamo.callback import callback_handler

_POLL = 0.1  # seconds between two looks at the button
_AGAIN = 1.0  # seconds after which an interruption that torch took for a failure of its own is repeated


@contextlib.contextmanager
def cancellable_compiling() -> Iterator[None]:
    """For a block of code in which torch may compile: there the cancel button ends it, as elsewhere in the host.

    Python raises the host's exception in this thread as soon as it runs Python code. While a compiler's own process is
    waited for, such as Triton's, that is when it has come back.

    Raises:
        InterruptProcessingException: the host's, when the user cancelled.
    """
    watch = _Watch(threading.get_ident())
    callback_handler.register_start_callback(watch.begin)
    callback_handler.register_end_callback(watch.end)
    try:
        yield
    except BaseException:
        # torch wraps what is raised while it compiles; the flag is taken down as the host does it
        watch.stop()
        memory.throw_exception_if_processing_interrupted()
        raise
    finally:
        watch.stop()
        # resetting torch's compiler forgets them
        with contextlib.suppress(ValueError):
            callback_handler.remove_start_callback(watch.begin)
            callback_handler.remove_end_callback(watch.end)


class _Watch:
    """Looks at the button while a thread compiles, from a thread of its own that exists only if it does."""

    def __init__(self, thread: int):
        self._thread = thread
        self._compiling, self._over = threading.Event(), threading.Event()
        self._watcher: threading.Thread | None = None

    def begin(self, *_):
        if threading.get_ident() != self._thread:
            return
        self._compiling.set()
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._look, name="quantflux cancel", daemon=True)
            self._watcher.start()

    def end(self, *_):
        if threading.get_ident() == self._thread:
            self._compiling.clear()

    def stop(self):
        self._over.set()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
            _raise_in(self._thread, None)  # what was not delivered yet

    def _look(self):
        while not self._over.wait(_POLL):
            if self._compiling.is_set() and memory.processing_interrupted():
                _raise_in(self._thread, memory.InterruptProcessingException)
                self._over.wait(_AGAIN)


def _raise_in(thread: int, exception: type[BaseException] | None):
    """Have ``exception`` raised in another thread; None takes back what was not raised yet."""
    wanted = None if exception is None else ctypes.py_object(exception)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), wanted)
