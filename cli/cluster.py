"""Runs graphs on a Ray cluster, one ComfyUI for each GPU; what fails on one is tried on another."""

from __future__ import annotations

import argparse
import logging
import socket
from collections import deque
from collections.abc import Iterator

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from .errors import HostError, UsageError
from .installed import InstalledHost, find_comfyui
from .interrupts import raise_if_interrupted
from .outcome import Outcome, run_graph
from .progress import Progress
from .results import Graph

# How long hosts may take to start, or to be given a place, while nothing else goes on.
START_SECONDS = 600


@ray.remote
class HostActor:
    """A ComfyUI on the machine that Ray chose, with the GPU that Ray gave."""

    def start(self, comfyui: str | None, flags: list[str]) -> None:
        """Start it; raises HostError."""
        self._host = InstalledHost(find_comfyui(comfyui), flags)
        self._host.start()

    def object_info(self) -> dict:
        """Return the description of all its nodes."""
        return self._host.client.get("/object_info")

    def run(self, graph: Graph, timeout: float | None) -> Outcome:
        """Run a graph to its end; raises HostError if the host ends on the way."""
        with self._host.explained():
            return run_graph(self._host.client, graph, timeout)

    def stop(self) -> None:
        """End the host in order."""
        self._host.stop()


class Cluster:
    """The hosts on a Ray cluster; a context manager, inside which at least one of them has started.

    Raises UsageError if there is no such cluster or no room on it, HostError if no host starts.
    """

    def __init__(self, options: argparse.Namespace, progress: Progress):
        self._options = options
        self._progress = progress
        self._hosts: dict[int, ActorHandle] = {}  # by a number that is not used again
        self._idle: set[int] = set()
        self._busy: dict[ray.ObjectRef, tuple[int, int | None]] = {}  # → host, and row, or None while it starts
        self._made = 0

    def __enter__(self) -> Cluster:
        options = self._options
        _require_listener(options.ray)
        try:
            ray.init(options.ray, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"--ray {options.ray}: {error}") from None
        try:
            for _ in range(self._count()):
                self._add_host()
            self._progress.show(f"starting ComfyUI on {len(self._hosts)} hosts")
            while not self._idle:
                self._next()
            (first, *_) = self._idle
            self.object_info = ray.get(self._hosts[first].object_info.remote())
        except BaseException:
            ray.shutdown()  # ends the actors, and their hosts with them
            raise
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        if kind is None and self._idle:
            ray.wait([self._hosts[host].stop.remote() for host in self._idle], num_returns=len(self._idle), timeout=15)
        ray.shutdown()

    def run(self, graphs: list[Graph]) -> Iterator[Outcome]:
        """Run every graph, as many at a time as there are hosts, and yield how each ended, in the order of the graphs.

        A row that failed is tried on a host that has not tried it yet, at most `retries` times; so is one whose host
        was lost, for which a new host is started.
        """
        waiting, done, yielded = deque(range(len(graphs))), {}, 0
        tried: dict[int, set[int]] = {row: set() for row in waiting}
        last = dict.fromkeys(waiting, Outcome(error="no host became free for it"))
        while yielded < len(graphs):
            raise_if_interrupted()
            for host in sorted(self._idle):
                row = next((row for row in waiting if host not in tried[row]), None)
                if row is not None:
                    waiting.remove(row)
                    self._submit(host, row, graphs[row])
            try:
                ended = self._next() if self._busy else None
            except HostError as error:
                ended, last = None, dict.fromkeys(waiting, Outcome(error=str(error)))
            if ended is None:  # nobody is left to try the rest
                done |= {row: last[row] for row in waiting}
                waiting.clear()
            else:
                host, row, outcome = ended
                if row is not None:
                    tried[row].add(host)
                    last[row] = outcome
                    if outcome.finished or len(tried[row]) > self._options.retries:
                        done[row] = outcome
                    else:
                        waiting.appendleft(row)
            self._progress.show(f"{len(done)} of {len(graphs)} rows done, {len(self._hosts)} hosts")
            while yielded in done:
                yield done.pop(yielded)
                yielded += 1

    def _count(self) -> int:
        options, gpus = self._options, ray.cluster_resources().get("GPU", 0)
        if options.ray_hosts is None and options.ray_gpus <= 0:
            raise UsageError("--ray-gpus 0: say by --ray-hosts how many ComfyUIs to start.")
        count = options.ray_hosts if options.ray_hosts is not None else int(gpus // options.ray_gpus)
        if count < 1 or count * options.ray_gpus > gpus:
            wanted = f"{count} hosts with {options.ray_gpus:g} GPUs each"
            raise UsageError(
                f"the Ray cluster has {gpus:g} GPUs, too few for {wanted}. To go on, choose --ray-hosts, "
                "or --ray-gpus 0 for CPUs."
            )
        return count

    def _add_host(self) -> None:
        self._made += 1
        place = {"num_cpus": self._options.ray_cpus, "num_gpus": self._options.ray_gpus}
        actor = HostActor.options(scheduling_strategy="SPREAD", **place).remote()
        self._hosts[self._made] = actor
        self._busy[actor.start.remote(self._options.comfyui, self._options.flags)] = (self._made, None)

    def _submit(self, host: int, row: int, graph: Graph) -> None:
        self._idle.remove(host)
        self._busy[self._hosts[host].run.remote(graph, self._options.timeout)] = (host, row)

    def _next(self) -> tuple[int, int | None, Outcome | None] | None:
        """Wait until a host has started, has ended a row, or is lost; return it, the row, and how that ended.

        Returns None if hosts are only being waited for, and none starts. Raises HostError if none is left.
        """
        starting = all(row is None for _, row in self._busy.values())
        ready, _ = ray.wait(list(self._busy), num_returns=1, timeout=START_SECONDS if starting else None)
        if not ready:
            if not self._idle:
                raise HostError(f"no ComfyUI started on the Ray cluster within {START_SECONDS} s.")
            return None
        host, row = self._busy.pop(ready[0])
        try:
            outcome = ray.get(ready[0])
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            ray.kill(self._hosts.pop(host))
            if row is not None:
                self._add_host()
            elif not self._hosts:
                raise HostError(str(cause)) from None
            return host, row, Outcome(error=f"its host was lost: {cause}")
        self._idle.add(host)
        return host, row, outcome


def _require_listener(address: str) -> None:
    """Raise UsageError if nothing listens at a "host:port"; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise UsageError(f"--ray {address}: nothing answers there: {error}.") from None
