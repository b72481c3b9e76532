"""A small Hub on 127.0.0.1 that takes uploads: the part of the HTTP interface that huggingface_hub's commits use.

Files above ``LFS_FROM`` bytes go by the LFS protocol, smaller ones inside the commit, as on the Hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LFS_FROM = 4096  # bytes

_ROUTES = {
    r"POST /api/repos/create": "create_repo",
    r"POST /api/validate-yaml": "validate_card",
    r"POST /api/models/(?P<repo>[^/]+/[^/]+)/branch/(?P<revision>[^/]+)": "create_branch",
    r"POST /api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)": "preupload",
    r"POST /api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)": "commit",
    r"POST /(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch": "lfs_batch",
    r"PUT /lfs/(?P<oid>[0-9a-f]{64})": "lfs_put",
    r"POST /lfs/(?P<oid>[0-9a-f]{64})/verify": "lfs_verify",
    r"GET /api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)/?": "list_root",
    r"HEAD /(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)": "head_file",
}


@dataclass
class Commit:
    repo: str
    revision: str
    message: str
    files: dict[str, bytes]
    deleted: list[str]


@dataclass
class UploadHub:
    """``token`` may write to the namespace ``owner``. ``failing`` maps a route's name to a status to answer with."""

    token: str = "hf_writer"
    owner: str = "owner"
    private: dict[str, bool] = field(default_factory=dict)
    branches: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    commits: list[Commit] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    failing: dict[str, int] = field(default_factory=dict)
    url: str = ""


@contextmanager
def running_upload_hub():
    hub = UploadHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: UploadHub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def do_POST(self):
        self._answer()

    def do_PUT(self):
        self._answer()

    def log_message(self, *args):
        pass

    def _answer(self):
        # read whatever is answered: an unread body would be taken for the next request
        body = self._body()
        request = f"{self.command} {urlsplit(self.path).path}"
        found = ((re.fullmatch(pattern, request), name) for pattern, name in _ROUTES.items())
        match, name = next((pair for pair in found if pair[0]), (None, ""))
        if match is None:
            return self._send(404)
        if name in self.hub.failing:
            return self._send(self.hub.failing[name])
        # the addresses that files are sent to carry their own permission
        if not name.startswith("lfs_p") and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._send(401)
        route: Callable = getattr(self, f"_{name}")
        route(body, **{key: unquote(value) for key, value in match.groupdict().items()})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _create_repo(self, body: bytes):
        asked = json.loads(body)
        repo = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != self.hub.owner:
            return self._send(403)
        if repo in self.hub.branches:
            return self._json({"url": f"{self.hub.url}/{repo}", "error": "You already created this model repo"}, 409)
        self.hub.branches[repo] = {"main": {}}
        self.hub.private[repo] = asked.get("private", False) or asked.get("visibility") == "private"
        self._json({"url": f"{self.hub.url}/{repo}", "id": repo})

    def _create_branch(self, body: bytes, repo: str, revision: str):
        branches = self.hub.branches[repo]
        if revision in branches:
            return self._json({"error": "Reference already exists"}, 409)
        branches[revision] = dict(branches["main"])
        self._json({})

    def _validate_card(self, body: bytes):
        content = json.loads(body)["content"]
        if not content.startswith("---\n"):
            return self._json({"errors": [{"message": "no metadata"}], "warnings": []}, 400)
        self._json({"errors": [], "warnings": []})

    def _preupload(self, body: bytes, repo: str, revision: str):
        if revision not in self.hub.branches.get(repo, {}):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] > LFS_FROM else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": modes})

    def _lfs_batch(self, body: bytes, repo: str):
        objects = []
        for wanted in json.loads(body)["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                href = f"{self.hub.url}/lfs/{wanted['oid']}"
                answer["actions"] = {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}
            objects.append(answer)
        self._json({"objects": objects, "transfer": "basic"})

    def _lfs_put(self, body: bytes, oid: str):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._send(400)
        self.hub.uploads.append(oid)
        self.hub.objects[oid] = body
        self._send(200)

    def _lfs_verify(self, body: bytes, oid: str):
        wanted = json.loads(body)
        same = len(self.hub.objects.get(wanted["oid"], b"")) == wanted["size"]
        self._send(200 if same else 404)

    def _commit(self, body: bytes, repo: str, revision: str):
        message, files, deleted = "", {}, []
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif item["key"] == "deletedFile":
                deleted.append(value["path"])
        self.hub.commits.append(Commit(repo, revision, message, files, deleted))
        self.hub.branches[repo][revision].update(files)
        for path in deleted:
            del self.hub.branches[repo][revision][path]
        oid = hashlib.sha1(str(len(self.hub.commits)).encode()).hexdigest()
        self._json({"commitUrl": f"{self.hub.url}/{repo}/commit/{oid}", "commitOid": oid})

    def _list_root(self, body: bytes, repo: str, revision: str):
        files = self.hub.branches.get(repo, {}).get(revision)
        if files is None:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        entries = [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in files.items()
            if "/" not in name
        ]
        folders = {name.split("/")[0] for name in files if "/" in name}
        self._json([*entries, *({"type": "directory", "path": name, "oid": "0" * 40} for name in folders)])

    def _head_file(self, body: bytes, repo: str, revision: str, file: str):
        files = self.hub.branches.get(repo, {}).get(revision)
        if files is None:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        if file not in files:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": "0" * 40})
        headers = {"ETag": f'"{hashlib.sha1(files[file]).hexdigest()}"', "X-Repo-Commit": "0" * 40}
        self._send(200, headers, files[file])

    def _json(self, value: object, status: int = 200):
        self._send(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b""):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
