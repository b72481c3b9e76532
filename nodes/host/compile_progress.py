"""A bar for the steps of sampling that compile, and the cancel button between one block and the next."""

from __future__ import annotations

import comfy.model_management
from torch._dynamo.utils import counters

from .progress import progress_bar


class CompileProgress:
    """Counts the compiled modules of one step. Within one of them ``interrupt_compiling`` looks at the button.

    Args:
        modules: how many there are.
    """

    def __init__(self, modules: int):
        self._modules = modules
        self._is_first_step = True
        self._compiled = self._done = 0
        self._bar = progress_bar()

    def begin_step(self) -> None:
        """Of the node that samples, which shows the bar."""
        self._compiled, self._done, self._bar = _compilations(), 0, progress_bar()

    def begin_module(self) -> None:
        """Move the bar, if this step compiles; raises if the user cancelled."""
        if self._is_first_step or _compilations() > self._compiled:
            self._bar(self._done, self._modules)
        else:
            comfy.model_management.throw_exception_if_processing_interrupted()
        self._done += 1

    def end_step(self) -> None:
        self._is_first_step = False


def _compilations() -> int:
    """That torch began in this process."""
    return counters["frames"]["total"]
