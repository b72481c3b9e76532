"""`quantflux run`: a workflow, or one for each row of a file, on a server, on a host of its own, or on a cluster."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from .client import ComfyClient
from .errors import UsageError
from .extras import require_extra
from .graph import read_workflow, to_graph
from .installed import InstalledHost, find_comfyui
from .interrupts import stop_on_signals
from .outcome import Outcome, run_graph
from .outputs import save_files, texts
from .progress import NodeProgress, Progress
from .prompts import read_prompts
from .results import Graph
from .settings import parse_setting, with_settings

# Flags with which the user would move the ComfyUI that is started away from where it is waited for.
ADDRESS_FLAGS = {"--listen", "--port", "--tls-keyfile", "--tls-certfile"}

# How graphs are run: the outcomes come in the order of the graphs.
Runner = Callable[[list[Graph]], Iterator[Outcome]]


def run(options: argparse.Namespace) -> int:
    """Run what the command line asks for and return the exit status: 0, or 1 if the workflow failed in any row.

    Raises UsageError, HostError and ServerGone.
    """
    stop_on_signals()
    stream = sys.stdout
    _refuse_contradictions(options)
    workflow = read_workflow(options.workflow)
    settings = [parse_setting(argument) for argument in options.set]
    rows = read_prompts(options.prompts) if options.prompts else [[]]
    with Progress(sys.stderr, quiet=options.quiet) as progress, _open(options, progress) as (object_info, runner):
        graph = to_graph(workflow, object_info)
        graphs = [with_settings(graph, [*settings, *row], object_info) for row in rows]
        folder = _make_folder(options.output)
        failed = []
        for number, (outcome, ran) in enumerate(zip(runner(graphs), graphs, strict=True), 1):
            progress.clear()
            if not _report(outcome, ran, stream, folder, f"{number:04}_" if options.prompts else ""):
                failed.append(number)
                where = f"row {number} of {len(rows)}: " if options.prompts else ""
                print(f"quantflux: {where}{outcome.error}", file=sys.stderr, flush=True)
    if failed and options.prompts:
        print(f"quantflux: {len(failed)} of {len(rows)} rows failed: {', '.join(map(str, failed))}", file=sys.stderr)
    return 1 if failed else 0


def _refuse_contradictions(options: argparse.Namespace) -> None:
    if options.server and (options.comfyui or options.log or options.flags):
        raise UsageError(
            "--comfyui, --log and what follows -- are for a ComfyUI to start; --server names one that runs."
        )
    if options.ray and options.log:
        raise UsageError("--log is for a ComfyUI on this machine, and --ray starts none here.")
    if moved := [flag for flag in options.flags if flag.partition("=")[0] in ADDRESS_FLAGS]:
        raise UsageError(
            f"{moved[0]}: a ComfyUI that is started here has an address of its own, and ends with the run. To go on, "
            "leave the flag out; or start ComfyUI yourself, and give its address by --server."
        )


def _make_folder(path: str) -> Path:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {path}: {error.strerror}.") from None
    return Path(path)


def _report(outcome: Outcome, graph: Graph, stream: TextIO, folder: Path, prefix: str) -> bool:
    """Save and print what a graph made; return whether it ran."""
    if outcome.finished is None:
        return False
    for line in [*texts(outcome.finished, graph), *save_files(outcome.finished, folder, prefix)]:
        print(line, file=stream, flush=True)
    return True


@contextlib.contextmanager
def _open(options: argparse.Namespace, progress: Progress) -> Iterator[tuple[dict, Runner]]:
    """The description of all nodes where the graphs will run, and what runs them there."""
    if options.ray:
        require_extra("ray")
        from .cluster import Cluster

        # Ray prints what happens to its workers on standard output, which is for results.
        with contextlib.redirect_stdout(sys.stderr), Cluster(options, progress) as cluster:
            yield cluster.object_info, cluster.run
        return
    with contextlib.ExitStack() as stack:
        if options.server:
            client = ComfyClient(options.server)
        else:
            root = find_comfyui(options.comfyui)
            progress.show(f"starting ComfyUI in {root}")
            host = stack.enter_context(InstalledHost(root, options.flags, options.log))
            stack.enter_context(host.explained())
            client = host.client

        def run_in_turn(graphs: list[Graph]) -> Iterator[Outcome]:
            for number, graph in enumerate(graphs, 1):
                prefix = f"[{number}/{len(graphs)}] " if len(graphs) > 1 else ""
                yield run_graph(client, graph, options.timeout, NodeProgress(progress, graph, prefix))

        yield client.get("/object_info"), run_in_turn
