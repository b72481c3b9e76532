"""Progress on the node, and the host's cancel button."""

from __future__ import annotations

from collections.abc import Callable

import comfy.model_management
import comfy.utils


def progress_bar() -> Callable[[int, int], None]:
    """A function to call with (done, total): moves the node's bar, and raises if the user cancelled."""
    bar = comfy.utils.ProgressBar(1)

    def report(done: int, total: int):
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return report
