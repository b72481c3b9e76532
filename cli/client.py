"""Talks to a running ComfyUI: queues API-format workflows, follows them, and fetches what they made."""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import json
import math
import time
import uuid
from collections.abc import Callable, Iterator
from urllib.parse import unquote, urlsplit

import requests
import websocket

from .errors import ServerGone, UsageError
from .interrupts import raise_if_interrupted
from .results import Finished, Graph, OutputFile, PromptFailed, PromptRejected

ProgressHook = Callable[[str, int, int], None]
NodeHook = Callable[[str], None]

# How long nothing may be heard of a running workflow before the server is asked whether it is still there.
QUIET_SECONDS = 30
# How long an interruption that Python dropped may go unnoticed.
NOTICE_SECONDS = 1

TRIVIAL_GRAPH: Graph = {
    "image": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "show": {"class_type": "PreviewImage", "inputs": {"images": ["image", 0]}},
}


class ComfyClient:
    """A client of the ComfyUI at `server`: a URL, or "host:port".

    A name and a password in it are sent as basic authentication; its query and fragment are the canvas's, and dropped.
    Raises UsageError for what is no URL.
    """

    def __init__(self, server: str):
        try:
            address = urlsplit(server if server.partition("://")[0].isalpha() else f"http://{server}")
        except ValueError as error:
            raise UsageError(f"{server} is not the address of a server: {error}.") from None
        credentials, _, place = address.netloc.rpartition("@")
        self.url = f"{address.scheme}://{place}{address.path}".rstrip("/")
        # One for all requests: what clears up behind a session of one request may swallow a KeyboardInterrupt.
        self._session = requests.Session()
        self._socket_options: dict = {}
        if credentials:
            name, _, password = (unquote(part).encode() for part in credentials.partition(":"))
            self._session.auth = (name, password)
            token = base64.b64encode(name + b":" + password).decode()
            self._socket_options["header"] = {"Authorization": f"Basic {token}"}
        if _is_this_machine(address.hostname or ""):
            # A proxy would look for the server on its own machine. The websocket heeds http_no_proxy only where it is
            # told of a proxy.
            self._session.trust_env = False
            self._socket_options |= {"http_proxy_host": "none", "http_no_proxy": ["*"]}

    def run(
        self,
        graph: Graph,
        on_progress: ProgressHook | None = None,
        timeout: float | None = 600,
        on_node: NodeHook | None = None,
    ) -> Finished:
        """Run an API-format workflow to its end and return what it made.

        `on_node(node_id)` is called when a node begins, `on_progress(node_id, done, total)` for each step that it
        reports. Raises PromptRejected, PromptFailed, InterruptedError, ServerGone, or TimeoutError after `timeout`
        seconds (None: never). After a timeout or a KeyboardInterrupt the server no longer works on it.
        """
        deadline = time.monotonic() + (math.inf if timeout is None else timeout)
        client_id, prompt_id = uuid.uuid4().hex, str(uuid.uuid4())
        # The socket is opened first: a workflow that is cached ends before a later socket could hear of it.
        with self._reach():
            socket_url = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
            patience = min(timeout or QUIET_SECONDS, QUIET_SECONDS)
            events = websocket.create_connection(socket_url, timeout=patience, **self._socket_options)
        try:
            self.queue(graph, client_id, prompt_id)
            self._follow(events, prompt_id, on_progress, on_node, deadline)
        except TimeoutError:
            self.cancel(prompt_id)
            raise TimeoutError(f"the workflow did not end within {timeout:.0f} s") from None
        except KeyboardInterrupt:
            self.cancel(prompt_id)
            raise
        finally:
            events.close()
        return self._collect(prompt_id, deadline)

    def queue(self, graph: Graph, client_id: str = "", prompt_id: str | None = None) -> str:
        """Queue a workflow and return its prompt id; raise PromptRejected if the host finds it invalid."""
        body = {"prompt": graph, "client_id": client_id, "prompt_id": prompt_id or str(uuid.uuid4())}
        with self._reach():
            answer = self._session.post(f"{self.url}/prompt", json=body, timeout=60)
        if answer.status_code == 400:
            raise PromptRejected(_problems(answer.json()), graph)
        answer.raise_for_status()
        return answer.json()["prompt_id"]

    def cancel(self, prompt_id: str) -> None:
        """Take a workflow out of the server's queue, or interrupt it if it runs. A server that is gone is no error."""
        with contextlib.suppress(requests.RequestException):
            self._session.post(f"{self.url}/queue", json={"delete": [prompt_id]}, timeout=10)
            self._session.post(f"{self.url}/interrupt", json={"prompt_id": prompt_id}, timeout=10)

    def interrupt(self) -> None:
        """Stop whatever workflow runs, as the canvas's cancel button does; raise ServerGone if no server answers."""
        with self._reach():
            self._session.post(f"{self.url}/interrupt", json={}, timeout=10).raise_for_status()

    def get(self, route: str) -> dict:
        """Return the JSON at a route, such as "/object_info" or "/system_stats"; raise ServerGone if none answers."""
        with self._reach():
            answer = self._session.get(self.url + route, timeout=60)
        # With a status of 500 it is a ComfyUI, or what stands before one, that failed.
        if answer.status_code < 500 and "json" not in answer.headers.get("Content-Type", ""):
            raise ServerGone(
                f"no ComfyUI answers at {self.url}: {route} is not JSON there (status {answer.status_code})"
            )
        answer.raise_for_status()
        return answer.json()

    def free(self) -> None:
        """Have the host unload every model and forget every cached result, and wait until it has."""
        wanted = {"unload_models": True, "free_memory": True}
        self._session.post(f"{self.url}/free", json=wanted, timeout=60).raise_for_status()
        # The host's worker does it after its next prompt, or when it wakes, and says nothing when done. With a trivial
        # prompt of ours in between, it has been done before any prompt that is queued later.
        self.run(TRIVIAL_GRAPH)

    @contextlib.contextmanager
    def _reach(self) -> Iterator[None]:
        try:
            yield
        except (OSError, websocket.WebSocketException) as error:
            raise ServerGone(f"no ComfyUI answers at {self.url}: {error}") from error

    def _follow(
        self,
        events: websocket.WebSocket,
        prompt_id: str,
        on_progress: ProgressHook | None,
        on_node: NodeHook | None,
        deadline: float,
    ) -> None:
        while True:
            message = self._next_message(events, deadline)
            if not isinstance(message, str):
                continue  # a preview picture
            event = json.loads(message)
            kind, data = event["type"], event["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            if kind == "executing" and on_node and data["node"] is not None:
                on_node(data["node"])
            elif kind == "progress" and on_progress:
                on_progress(data["node"], data["value"], data["max"])
            elif kind == "execution_error":
                raise PromptFailed(data)
            elif kind == "execution_interrupted":
                raise InterruptedError(f"the workflow was interrupted at node {data['node_id']}")
            elif kind == "execution_success":
                return

    def _next_message(self, events: websocket.WebSocket, deadline: float) -> str | bytes:
        asked = time.monotonic()
        while True:
            raise_if_interrupted()
            events.settimeout(max(0.1, min(deadline - time.monotonic(), NOTICE_SECONDS)))
            try:
                with self._reach():
                    message = events.recv()
                    # what recv makes of a close frame; ComfyUI sends no empty text
                    if message == "":
                        raise websocket.WebSocketConnectionClosedException("it closed the connection")
                    return message
            except ServerGone as gone:
                if not isinstance(gone.__cause__, websocket.WebSocketTimeoutException):
                    raise
            now = time.monotonic()
            if now >= deadline:
                raise TimeoutError
            if now - asked >= QUIET_SECONDS:
                self.get("/queue")
                asked = now

    def _collect(self, prompt_id: str, deadline: float) -> Finished:
        # The history is written just after the last event is sent.
        while prompt_id not in (history := self.get(f"/history/{prompt_id}")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the host has no history of the finished prompt {prompt_id}")
            time.sleep(0.02)
        entry = history[prompt_id]
        saved = [
            OutputFile(node_id, kind, file["filename"], self._file(file))
            for node_id, output in entry["outputs"].items()
            for kind, values in output.items()
            if isinstance(values, list)
            for file in values
            if isinstance(file, dict) and "filename" in file
        ]
        return Finished(prompt_id, entry, saved)

    def _file(self, file: dict) -> bytes:
        with self._reach():
            answer = self._session.get(f"{self.url}/view", params=file, timeout=60)
        answer.raise_for_status()
        return answer.content


def _is_this_machine(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def _problems(body: dict) -> list[tuple[str | None, str]]:
    """What is wrong, by node, in the host's answer to an invalid workflow."""
    error = body["error"]
    whole = error if isinstance(error, str) else ": ".join(filter(None, (error["message"], error.get("details"))))
    problems: list[tuple[str | None, str]] = [(None, whole)]
    for node_id, node in (body.get("node_errors") or {}).items():
        problems += [(node_id, f"{found['message']}: {found['details']}") for found in node["errors"]]
    return problems
