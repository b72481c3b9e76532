"""Which server an address is, and how it is reached. (What a ComfyUI answers is in tests/e2e.)"""

import base64
import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from quantflux.cli.client import ComfyClient
from quantflux.cli.errors import ServerGone, UsageError


class Recorder(BaseHTTPRequestHandler):
    """Answers with an empty object, or under /page with a page, and keeps what it was asked by whom."""

    def do_GET(self):  # noqa: N802, http.server's name
        self.server.asked.append((self.path.partition("?")[0], self.headers["Authorization"]))
        kind, body = ("text/html", b"<p>") if self.path.startswith("/page") else ("application/json", b"{}")
        self.send_response(404 if self.path.startswith("/page/gone") else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Leaver(BaseHTTPRequestHandler):
    """Takes a workflow and a websocket, and closes that in the websocket's own way, as a ComfyUI that ends does."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):  # noqa: N802
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.wfile.write(b"\x88\x02\x03\xe9")  # a close frame: going away
        self.rfile.read(8)  # the client's own
        self.close_connection = True

    def do_POST(self):  # noqa: N802
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b'{"prompt_id": "1"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(request):
    with ThreadingHTTPServer(("127.0.0.1", 0), getattr(request, "param", Recorder)) as running:
        running.asked = []
        running.address = f"127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, args=(0.01,)).start()
        yield running
        running.shutdown()


@pytest.fixture
def dead_proxy(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "address",
    [
        "{}",
        "http://{}",
        "http://{}/",
        "http://{}/?template=tiny&source=quantflux",
        "http://{}#canvas",
        "{}/?a=http://b",
    ],
)
def test_query_and_fragment_of_an_address_are_dropped(server, address):
    client = ComfyClient(address.format(server.address))
    assert client.url == f"http://{server.address}"
    assert client.get("/object_info") == {}
    assert server.asked == [("/object_info", None)]


def test_a_path_before_the_routes_stays(server):
    ComfyClient(f"{server.address}/comfy/?template=tiny").get("/object_info")
    assert server.asked == [("/comfy/object_info", None)]


def test_name_and_password_are_sent_with_requests_and_the_websocket_and_not_told(server):
    client = ComfyClient(f"http://me:p%40ss@{server.address}")
    client.get("/object_info")
    with pytest.raises(ServerGone):  # no websocket is there
        client.run({})
    authorization = "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert server.asked == [("/object_info", authorization), ("/ws", authorization)]
    assert client.url == f"http://{server.address}"


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
def test_a_server_on_this_machine_is_reached_past_a_proxy(server, dead_proxy, name):
    client = ComfyClient(f"{name}:{server.server_port}")
    client.get("/object_info")
    with pytest.raises(ServerGone):
        client.run({})
    assert [path for path, _ in server.asked] == ["/object_info", "/ws"]


def test_a_server_elsewhere_is_reached_through_the_proxy(server, dead_proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://{server.address}")
    ComfyClient("comfyui.invalid").get("/object_info")
    assert server.asked == [("http://comfyui.invalid/object_info", None)]


@pytest.mark.parametrize("route", ["/page", "/page/gone"])
def test_what_is_no_comfyui_is_told(server, route):
    with pytest.raises(ServerGone, match=rf"no ComfyUI answers at http://{server.address}: {route} is not JSON there"):
        ComfyClient(server.address).get(route)


@pytest.mark.parametrize("server", [Leaver], indirect=True)
def test_a_websocket_that_the_server_closes_is_told_as_a_server_that_is_gone(server):
    with pytest.raises(ServerGone, match=f"no ComfyUI answers at http://{server.address}: it closed the connection"):
        ComfyClient(server.address).run({}, timeout=20)


def test_what_is_no_address_is_refused():
    with pytest.raises(UsageError, match=r"http://\[::1 is not the address of a server"):
        ComfyClient("http://[::1")
