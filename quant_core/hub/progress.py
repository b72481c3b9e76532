"""Requests to the Hub that can be stopped, and the progress of a download, which huggingface_hub counts."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.utils import tqdm

Progress = Callable[[int, int], None]
T = TypeVar("T")

_INTERVAL = 0.2  # seconds between two calls of progress, also where nothing arrives
_PATIENCE = 1.0  # seconds for a download to end by itself


class Tally:
    """Bytes over all files of a download.

    Attributes:
        total: bytes in all.
        done: bytes so far; never falls.
    """

    def __init__(self, total: int):
        self.total = total
        self.done = 0
        self._finished = 0
        self._stopped = False

    def finish_file(self, size: int):
        """Count a file of ``size`` bytes as done, be it downloaded or found in the cache."""
        self._finished += size
        self._count(self._finished)

    def stop(self):
        """Let the running download fail as soon as it counts again."""
        self._stopped = True

    def bar(self) -> type[tqdm]:
        """huggingface_hub's bar for one file, which also counts here."""
        tally = self

        class CountingBar(tqdm):
            def __init__(self, *args, **kwargs):
                super().__init__(*args, **kwargs)
                # counted here, because a bar that is not shown does not count
                self.written = self.received = kwargs.get("initial", 0)
                self.size = kwargs.get("total") or tally.total
                self.before = tally._finished
                self.thread = threading.get_ident()

            def update(self, n=1):
                shown = super().update(n)
                self.written += n
                self._tell()
                return shown

            # With these two, the Xet protocol shows one bar instead of two, and tells what has been received before it
            # is written.
            def update_transfer(self, n):
                self.received += n
                self._tell()

            def set_transfer_postfix_str(self, *args, **kwargs):
                pass

            def _tell(self):
                # on a thread of the Xet library it would be dropped, see _abort_xet
                if tally._stopped and threading.get_ident() == self.thread:
                    raise _Stopped
                # what is received may be more than the file
                tally._count(self.before + min(max(self.written, self.received), self.size))

        return CountingBar

    def _count(self, done: int):
        self.done = max(self.done, min(done, self.total))


class _Stopped(BaseException):
    """No Exception, so that nothing on the way takes it for a failure that another attempt could mend."""


def run_watched(download: Callable[[], None], tally: Tally, progress: Progress):
    """Run ``download`` on a thread of its own while this thread tells ``progress`` about it.

    What ``progress`` raises is raised within two seconds; a download that is still waiting then ends by itself, at the
    next bytes or when the request times out.
    """

    def stop(ended: threading.Event):
        tally.stop()
        if not ended.wait(_PATIENCE):
            _abort_xet()
            ended.wait(_PATIENCE / 2)

    _run_aside(download, lambda: progress(tally.done, tally.total), stop)


def run_asking(ask: Callable[[], T], progress: Progress) -> T:
    """What ``ask`` returns, which takes a few requests to the Hub. It is run on a thread of its own while this thread
    tells ``progress`` that nothing is done yet; what that raises is raised at once, and the requests time out."""
    answers: list[T] = []
    _run_aside(lambda: answers.append(ask()), lambda: progress(0, 1), lambda ended: None)
    return answers[0]


def _run_aside(work: Callable[[], object], tell: Callable[[], None], stop: Callable[[threading.Event], None]):
    """Run ``work`` on another thread and call ``tell`` until it has ended: only so can what waits for the network be
    given up. If ``tell`` raises, ``stop`` is called with the event of the end."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def run():
        try:
            work()
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    tell()
    threading.Thread(target=run, daemon=True, name="quantflux download").start()
    try:
        while not ended.wait(_INTERVAL):
            tell()
    except BaseException:
        stop(ended)
        raise
    if failures:
        raise failures[0]
    tell()


def _abort_xet():
    """End a download by the Xet protocol. Its library reports from a thread of its own and drops what is raised there.

    The private function is the one that stops the traffic (huggingface_hub issue 4632). It also stops the process's
    other Xet downloads, which their owners can start again.
    """
    try:
        from huggingface_hub.utils._xet import abort_xet_session
    except ImportError:
        # older: the download runs to its end in the background
        return
    # on its own thread, because it may wait for others
    threading.Thread(target=abort_xet_session, daemon=True).start()
