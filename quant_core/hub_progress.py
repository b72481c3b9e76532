"""huggingface_hub's download bar, made to report elsewhere and to stop when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable

from huggingface_hub.utils import tqdm

Progress = Callable[[int, int], None]


def reporting_bar(progress: Progress, stopped_by: list[BaseException]) -> type[tqdm]:
    """huggingface_hub's bar, which also tells ``progress``; what that raises is put into ``stopped_by``."""
    caller = threading.get_ident()

    class ReportingBar(tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            # counted here, because a bar that is not shown does not count
            self.written = self.received = kwargs.get("initial", 0)
            self.size = kwargs.get("total") or 0

        def update(self, n=1):
            shown = super().update(n)
            self.written += n
            self._report()
            return shown

        # With these two, the Xet protocol shows one bar instead of two, and tells what has been received before it is
        # written.
        def update_transfer(self, n):
            self.received += n
            self._report()

        def set_transfer_postfix_str(self, *args, **kwargs):
            pass

        def _report(self):
            if stopped_by:
                return
            done = max(self.written, self.received)
            try:
                progress(min(done, self.size) if self.size else done, self.size or done)
            except BaseException as error:
                stopped_by.append(error)
                if threading.get_ident() == caller:
                    raise
                _abort_xet()

    return ReportingBar


def _abort_xet():
    """End a download by the Xet protocol. Its library reports from a thread of its own and drops what is raised there.

    The private function is the one that stops the traffic (huggingface_hub issue 4632). It also stops the process's
    other Xet downloads, which their owners can start again.
    """
    try:
        from huggingface_hub.utils._xet import abort_xet_session
    except ImportError:
        # older: the download runs to its end, and the caller is told then
        return
    # from another thread: the one that reports may be waited for
    threading.Thread(target=abort_xet_session, daemon=True).start()
