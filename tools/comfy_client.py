"""Talks to a running ComfyUI: queues API-format workflows, follows them, and fetches what they made."""

import io
import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import requests
import websocket
from PIL import Image

Graph = dict[str, dict]
ProgressHook = Callable[[str, int, int], None]

TRIVIAL_GRAPH: Graph = {
    "image": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
    "show": {"class_type": "PreviewImage", "inputs": {"images": ["image", 0]}},
}


class PromptRejected(Exception):
    """The host refused a workflow before running it; the message lists what is wrong at which node."""


class PromptFailed(Exception):
    """A node raised while a workflow ran; the message is the node's own."""

    def __init__(self, event: dict):
        super().__init__(event["exception_message"].strip())
        self.node_id: str = event["node_id"]
        self.node_type: str = event["node_type"]
        self.exception_type: str = event["exception_type"]
        self.traceback: str = "".join(event["traceback"])


@dataclass(frozen=True)
class Finished:
    """What a workflow left behind: the host's history entry, and the saved images as encoded files."""

    prompt_id: str
    history: dict
    files: list[bytes]

    @property
    def outputs(self) -> dict[str, dict]:
        """What each node reported to the canvas, by node id."""
        return self.history["outputs"]

    @property
    def images(self) -> list[Image.Image]:
        """The saved images, decoded, in the order in which they were saved."""
        return [Image.open(io.BytesIO(data)).convert("RGB") for data in self.files]


class ComfyClient:
    """A client of the ComfyUI at `address` ("host:port")."""

    def __init__(self, address: str):
        self.address = address
        self.url = f"http://{address}"

    def run(self, graph: Graph, on_progress: ProgressHook | None = None, timeout: float = 600) -> Finished:
        """Run an API-format workflow to its end and return what it made.

        `on_progress(node_id, done, total)` is called for each step that a node reports.
        Raises PromptRejected, PromptFailed, or TimeoutError after `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        client_id = uuid.uuid4().hex
        # The socket is opened first: a workflow that is cached ends before a later socket could hear of it.
        events = websocket.create_connection(f"ws://{self.address}/ws?clientId={client_id}", timeout=timeout)
        try:
            prompt_id = self.queue(graph, client_id)
            self._follow(events, prompt_id, on_progress, deadline)
        except websocket.WebSocketTimeoutException:
            raise TimeoutError(f"the workflow did not end within {timeout:.0f} s") from None
        finally:
            events.close()
        return self._collect(prompt_id, deadline)

    def queue(self, graph: Graph, client_id: str = "") -> str:
        """Queue a workflow and return its prompt id; raise PromptRejected if the host finds it invalid."""
        answer = requests.post(f"{self.url}/prompt", json={"prompt": graph, "client_id": client_id}, timeout=60)
        if answer.status_code == 400:
            raise PromptRejected(_rejection(answer.json()))
        answer.raise_for_status()
        return answer.json()["prompt_id"]

    def get(self, route: str) -> dict:
        """Return the JSON at a route, such as "/object_info" or "/system_stats"."""
        answer = requests.get(self.url + route, timeout=60)
        answer.raise_for_status()
        return answer.json()

    def free(self) -> None:
        """Have the host unload every model and forget every cached result, and wait until it has."""
        wanted = {"unload_models": True, "free_memory": True}
        requests.post(f"{self.url}/free", json=wanted, timeout=60).raise_for_status()
        # The host's worker does it after its next prompt, or when it wakes, and says nothing when done. With a trivial
        # prompt of ours in between, it has been done before any prompt that is queued later.
        self.run(TRIVIAL_GRAPH)

    def _follow(self, events: websocket.WebSocket, prompt_id: str, hook: ProgressHook | None, deadline: float) -> None:
        while True:
            events.settimeout(max(0.1, deadline - time.monotonic()))
            message = events.recv()
            if not isinstance(message, str):
                continue  # a preview picture
            event = json.loads(message)
            kind, data = event["type"], event["data"]
            if data.get("prompt_id") != prompt_id:
                continue
            if kind == "progress" and hook:
                hook(data["node"], data["value"], data["max"])
            elif kind == "execution_error":
                raise PromptFailed(data)
            elif kind == "execution_interrupted":
                raise InterruptedError(f"the workflow was interrupted at node {data['node_id']}")
            elif kind == "execution_success":
                return

    def _collect(self, prompt_id: str, deadline: float) -> Finished:
        # The history is written just after the last event is sent.
        while prompt_id not in (history := self.get(f"/history/{prompt_id}")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the host has no history of the finished prompt {prompt_id}")
            time.sleep(0.02)
        entry = history[prompt_id]
        files = [self._file(image) for output in entry["outputs"].values() for image in output.get("images", [])]
        return Finished(prompt_id, entry, files)

    def _file(self, image: dict) -> bytes:
        answer = requests.get(f"{self.url}/view", params=image, timeout=60)
        answer.raise_for_status()
        return answer.content


def _rejection(body: dict) -> str:
    """Put the host's answer to an invalid workflow into one message."""
    lines = [": ".join(filter(None, (body["error"]["message"], body["error"].get("details"))))]
    for node_id, node in (body.get("node_errors") or {}).items():
        for error in node["errors"]:
            lines.append(f"{node['class_type']} ({node_id}): {error['message']}: {error['details']}")
    return "\n".join(lines)
