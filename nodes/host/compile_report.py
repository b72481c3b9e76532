"""What was compiled of a model, when and why again: kept with the model, since compiling waits for the first step."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections import Counter
from weakref import WeakKeyDictionary

import torch
from torch._dynamo.utils import counters, get_compilation_metrics

from .compile_settings import CompileSettings
from .node_text import show_on_node

logger = logging.getLogger(__name__)
# by model: a copy of one begins without
_REPORTS: WeakKeyDictionary[torch.nn.Module, dict[CompileSettings, CompileReport]] = WeakKeyDictionary()
_MODULE = re.compile(r"_modules\['(\w+)'\]")


class CompileReport:
    """What torch.compile did for one model with the same settings, in all samplings of this process.

    Attributes:
        figures: the settings; ``modules``, counts by class; ``steps``, predictions made; ``graphs``, each a dict of
            ``of`` (a class), ``at`` (sizes), ``seconds``, ``because``, the reason for another one of that class, and
            ``failed``, why there is none; ``graph_breaks``, counts by reason. Sampling brings it up to date in place.
    """

    def __init__(self, settings: CompileSettings, modules: list[torch.nn.Module]):
        self._classes = {_place(type(module)): type(module).__name__ for module in modules}
        self._told = 0
        self.figures = vars(settings) | {
            "modules": dict(Counter(type(module).__name__ for module in modules)),
            "steps": 0,
            "graphs": [],
            "graph_breaks": {},
        }

    @contextlib.contextmanager
    def watching(self, at: str):
        """Note what is compiled meanwhile, for inputs of the sizes ``at``."""
        start, breaks = time.time(), Counter(counters["graph_break"])
        try:
            yield
        finally:
            for metrics in get_compilation_metrics():
                # torch keeps what it tunes while a graph runs among its compilations
                if (metrics.start_time or 0) >= start and not metrics.is_runtime:
                    self.figures["graphs"].append(self._graph(metrics, at))
            for reason, count in (Counter(counters["graph_break"]) - breaks).items():
                reason = reason.strip().splitlines()[0]
                self.figures["graph_breaks"][reason] = self.figures["graph_breaks"].get(reason, 0) + count
        self.figures["steps"] += 1

    def text(self) -> str:
        """Lines for people."""
        figures = self.figures
        scope = ", ".join(f"{count} {name}" for name, count in figures["modules"].items())
        how = "per block" if figures["regional"] else "whole model"
        lines = [f"{figures['backend']}, {figures['mode']} · {how}: {scope} · dynamic {figures['dynamic']}"]
        if not figures["steps"]:
            return "\n".join([*lines, "Nothing compiled yet: that waits for the first step of sampling."])
        lines.append(self.summary())
        lines += [_line(graph) for graph in figures["graphs"]]
        lines += [f"{count} × not in a graph: {reason}" for reason, count in figures["graph_breaks"].items()]
        return "\n".join(lines)

    def summary(self) -> str:
        graphs = [graph for graph in self.figures["graphs"] if not graph["failed"]]
        breaks = sum(self.figures["graph_breaks"].values())
        again = sum(graph["because"] is not None for graph in graphs)
        seconds = sum(graph["seconds"] for graph in graphs)
        return (
            f"{_counted(len(graphs), 'graph')} compiled in {seconds:.1f} s, {again} of them again; "
            f"{_counted(breaks, 'graph break')}; {_counted(self.figures['steps'], 'step')} run"
        )

    def tell(self, node_id: str | None) -> None:
        """After sampling: the report on the node, and in the log what is new."""
        if node_id is not None:
            show_on_node(self.text(), node_id)
        new, self._told = self.figures["graphs"][self._told :], len(self.figures["graphs"])
        if new:
            logger.info("Compile: %s.\n%s", self.summary(), "\n".join(map(_line, new)))

    def _graph(self, metrics, at: str) -> dict:
        place = metrics.co_filename, metrics.co_firstlineno
        return {
            "of": self._classes.get(place) or f"{metrics.co_name}, a part between graph breaks",
            "at": at,
            "seconds": metrics.entire_frame_compile_time_s or 0.0,
            "because": _reason(getattr(metrics, "recompile_reason", None)),
            "failed": metrics.fail_reason and metrics.fail_reason.strip().splitlines()[0],
        }


def report_of(model: torch.nn.Module, settings: CompileSettings, modules: list[torch.nn.Module]) -> CompileReport:
    """The report kept for as long as ``model``, which all patchers share, for these settings."""
    reports = _REPORTS.setdefault(model, {})
    if settings not in reports:
        reports[settings] = CompileReport(settings, modules)
    return reports[settings]


def _reason(text: str | None) -> str | None:
    """A failed guard in words, where it is one of the usual ones."""
    if not text:
        return None
    guard = text.strip().splitlines()[0].partition(": ")[2].partition("  # ")[0].strip()
    layer = ".".join(_MODULE.findall(guard))
    if any(name in guard for name in ("low_rank", "weight_function", "bias_function")):
        return f"a LoRA came, went, or is on other layers: {layer}"
    if any(name in guard for name in ("size mismatch", "size()", "stride")):
        return f"another size: {guard}"
    return guard


def _line(graph: dict) -> str:
    because = f" · again: {graph['because']}" if graph["because"] else ""
    failed = f" · given up: {graph['failed']}" if graph["failed"] else ""
    return f"{graph['of']} · {graph['at']} · {graph['seconds']:.1f} s{because}{failed}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _place(cls: type) -> tuple[str, int] | None:
    code = getattr(cls.forward, "__code__", None)
    return code and (code.co_filename, code.co_firstlineno)
