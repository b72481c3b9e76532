"""A small Hub on 127.0.0.1: the part of the HTTP interface that listing, header reads and downloads use."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/]+))?")
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Repo:
    """Revisions of a repository, each with its files. A gated one lists them to everyone, as the Hub does."""

    revisions: dict[str, dict[str, bytes]]
    gated: bool = False


@dataclass
class Hub:
    """``granted`` is the token that opens gated repositories; ``requests`` lists (method, path) as they came.

    ``failing`` gives methods a status that they answer with instead.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    granted: str = "hf_granted"
    requests: list[tuple[str, str]] = field(default_factory=list)
    bytes_sent: int = 0
    failing: dict[str, int] = field(default_factory=dict)
    url: str = ""

    def add(self, name: str, files: dict[str, bytes], revision: str = "main", gated: bool = False):
        self.repos.setdefault(name, Repo({}, gated)).revisions[revision] = files


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
        server.shutdown()
        server.server_close()
        thread.join()


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
        path = urlsplit(self.path).path
        self.hub.requests.append((self.command, path))
        if self.command in self.hub.failing:
            return self._send(self.hub.failing[self.command])
        match = _INFO.fullmatch(path) or _FILE.fullmatch(path)
        repo = self.hub.repos.get(match["repo"]) if match else None
        if repo is None:
            return self._send(404, {"X-Error-Code": "RepoNotFound"})
        revision = unquote(match["revision"] or "main")
        commits = {commit_of(match["repo"], name): name for name in repo.revisions}
        files = repo.revisions.get(commits.get(revision, revision))
        if files is None:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        commit = commit_of(match["repo"], commits.get(revision, revision))
        if match.re is _INFO:
            info = {"id": match["repo"], "sha": commit, "siblings": [{"rfilename": name} for name in files]}
            return self._send(200, {"Content-Type": "application/json"}, json.dumps(info).encode())
        if repo.gated and self.headers.get("Authorization") != f"Bearer {self.hub.granted}":
            return self._send(401, {"X-Error-Code": "GatedRepo"})
        name = unquote(match["file"])
        if name not in files:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
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
            self.wfile.write(body)
            self.hub.bytes_sent += len(body)
        except ConnectionError:
            # the client went away, as a cancelled download does
            self.close_connection = True
