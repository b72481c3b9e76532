"""A small Hub on 127.0.0.1: the part of the HTTP interface that listing, header reads and downloads use."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub
import torch
from safetensors.torch import save

NOWHERE = "http://127.0.0.1:1"

_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_PIECE = 1 << 16
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Repo:
    """Revisions of a repository, each with its files. A gated one lists them to everyone, as the Hub does.

    ``branches`` are further names of revisions.
    """

    revisions: dict[str, dict[str, bytes]]
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)


@dataclass
class Hub:
    """``granted`` is the token that opens gated repositories; ``requests`` lists (method, path) as they came.

    ``failing`` gives methods a status that they answer with instead, ``refused`` gives it to files by their path in
    the repository. ``pause`` is in seconds, after every 64 kB sent. Of a body larger than ``stall_after`` bytes, the
    rest is sent when ``resumed`` is set. Sizes are listed on demand, as the Hub does, unless ``lists_sizes`` is off.
    ``on_request`` is called with the path before it is answered.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    granted: str = "hf_granted"
    requests: list[tuple[str, str]] = field(default_factory=list)
    bytes_sent: int = 0
    failing: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    pause: float = 0.0
    stall_after: int | None = None
    resumed: threading.Event = field(default_factory=threading.Event)
    lists_sizes: bool = True
    on_request: Callable[[str], None] = lambda path: None
    url: str = ""

    def add(self, name: str, files: dict[str, bytes], revision: str = "main", gated: bool = False):
        self.repos.setdefault(name, Repo({}, gated)).revisions[revision] = files

    def move(self, name: str, branch: str, to: str):
        """Let ``branch`` name the commit of the revision ``to``."""
        self.repos[name].branches[branch] = to

    def downloads(self) -> list[str]:
        """Files that were asked for whole or in part, by their paths in the repository, without repetition."""
        matches = (_FILE.fullmatch(path) for method, path in self.requests if method == "GET")
        return list(dict.fromkeys(unquote(match["file"]) for match in matches if match))


@contextmanager
def running_hub():
    hub = Hub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        hub.resumed.set()
        server.shutdown()
        server.server_close()
        thread.join()


def forget_this_machines_settings(monkeypatch):
    """Whatever the machine's own Hub settings are, tests see none, and the local server needs no proxy."""
    set_offline(monkeypatch, False)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def set_offline(monkeypatch, offline: bool):
    """What HF_HUB_OFFLINE does to a new process."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    # before 1.0, the library's sessions keep what they saw first
    getattr(huggingface_hub.utils, "reset_sessions", lambda: None)()


def file_of(marker: str, dtype: torch.dtype = torch.bfloat16, size: int = 8) -> bytes:
    """A safetensors file with a tensor of that name, and another one."""
    return save({marker: torch.zeros(size, dtype=dtype), "other.weight": torch.zeros(1)})


def folder_of(config: dict, weights: str, shards: int = 0, size: int = 8, path: str = "") -> dict[str, bytes]:
    """A model folder at ``path``: config.json and the file ``weights``, or as many ``shards`` of it and their index."""
    stem = weights.removesuffix(".safetensors")
    names = [f"{stem}-{i:05}-of-{shards:05}.safetensors" for i in range(1, shards + 1)]
    files = {name: save({f"part.{i}.weight": torch.zeros(size)}) for i, name in enumerate(names or [weights])}
    if shards:
        weight_map = {f"part.{i}.weight": name for i, name in enumerate(names)}
        files[f"{stem}.safetensors.index.json"] = json.dumps({"metadata": {}, "weight_map": weight_map}).encode()
    files["config.json"] = json.dumps(config).encode()
    return {f"{path}/{name}" if path else name: data for name, data in files.items()}


def commit_of(repo: str, revision: str) -> str:
    return hashlib.sha1(f"{repo}@{revision}".encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def log_message(self, *args):
        pass

    def _answer(self):
        url = urlsplit(self.path)
        path = url.path
        self.hub.requests.append((self.command, path))
        self.hub.on_request(path)
        if self.command in self.hub.failing:
            return self._send(self.hub.failing[self.command])
        match = _INFO.fullmatch(path) or _FILE.fullmatch(path)
        repo = self.hub.repos.get(match["repo"]) if match else None
        if repo is None:
            return self._send(404, {"X-Error-Code": "RepoNotFound"})
        revision = unquote(match["revision"] or "main")
        revision = repo.branches.get(revision, revision)
        commits = {commit_of(match["repo"], name): name for name in repo.revisions}
        files = repo.revisions.get(commits.get(revision, revision))
        if files is None:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        commit = commit_of(match["repo"], commits.get(revision, revision))
        if match.re is _INFO:
            sized = self.hub.lists_sizes and "blobs=" in url.query
            siblings = [{"rfilename": name} | ({"size": len(data)} if sized else {}) for name, data in files.items()]
            info = {"id": match["repo"], "sha": commit, "siblings": siblings}
            return self._send(200, {"Content-Type": "application/json"}, json.dumps(info).encode())
        if repo.gated and self.headers.get("Authorization") != f"Bearer {self.hub.granted}":
            return self._send(401, {"X-Error-Code": "GatedRepo"})
        name = unquote(match["file"])
        if name not in files:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        if name in self.hub.refused:
            return self._send(self.hub.refused[name])
        self._send_file(files[name], commit)

    def _send_file(self, data: bytes, commit: str):
        headers = {
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "X-Repo-Commit": commit,
            "Accept-Ranges": "bytes",
        }
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted is None:
            return self._send(200, headers, data)
        start = int(wanted[1])
        part = data[start : int(wanted[2]) + 1 if wanted[2] else None]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        self._send(206, headers, part)

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b""):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for start in range(0, len(body), _PIECE):
                if self.hub.stall_after is not None and start >= self.hub.stall_after:
                    self.hub.resumed.wait()
                piece = body[start : start + _PIECE]
                self.wfile.write(piece)
                self.hub.bytes_sent += len(piece)
                if self.hub.pause and len(body) > _PIECE:
                    time.sleep(self.hub.pause)
        except ConnectionError:
            # the client went away, as a cancelled download does
            self.close_connection = True
