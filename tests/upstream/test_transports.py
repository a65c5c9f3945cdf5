"""The transport that each upstream gets, and the behaviour that all of them share."""

import json
import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from helpers.dispatcher_calls import call_all, collect_results, make_bodies, make_calls, open_session
from helpers.polling import until
from helpers.scripted_server import COMPLETION, Received, ScriptedServer, raw, reply

from batchline.models.errors import InvalidInput
from batchline.models.settings import load_settings
from batchline.models.upstreams import Upstream
from batchline.upstream.dispatcher import Dispatcher, dispatcher_for
from batchline.upstream.transports.asyncio_http import AsyncioHttpTransport
from batchline.upstream.transports.base import TransportFactory
from batchline.upstream.transports.httpx import through_httpx
from batchline.upstream.transports.pyreqwest import PyreqwestTransport
from batchline.upstream.transports.select import open_transport

ANSWER = json.dumps(COMPLETION).encode()


class RecordingHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.seen.append(self.path)
        self.send_response(200)
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_: object) -> None:
        """Keep still."""


@pytest.fixture
def http_server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), RecordingHandler) as server:
        server.seen = []
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        try:
            yield server, thread
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that nobody has signed, with its key behind it."""
    path = tmp_path / "server.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    names = ["-subj", "/CN=127.0.0.1", "-days", "2", "-addext", "subjectAltName=IP:127.0.0.1"]
    names += ["-addext", "basicConstraints=critical,CA:FALSE"]
    subprocess.run(
        [*command, *names, "-keyout", tmp_path / "key.pem", "-out", path], check=True, capture_output=True
    )
    path.write_text(path.read_text() + (tmp_path / "key.pem").read_text())
    return path


@pytest.fixture
def tls_port(http_server: tuple[ThreadingHTTPServer, threading.Thread], certificate: Path) -> int:
    server, thread = http_server
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread.start()
    return server.server_port


def test_untrusted_certificate_is_connection_error(tls_port: int, make_dispatcher: Callable) -> None:
    dispatcher = make_dispatcher(f"https://127.0.0.1:{tls_port}")
    reasons = set()

    [answer] = call_all(
        dispatcher,
        make_bodies(1),
        deadline=time.time() + 2,
        watch=lambda progress: reasons.add(progress.paused or ""),
    )

    assert set(answer.retries) == {"connection_error"}
    assert any("certificate" in reason for reason in reasons)


@pytest.mark.parametrize("trust", ["ca_file", "verify_tls"])
def test_certificate_trusted_by_settings_is_accepted(
    trust: str, tls_port: int, certificate: Path, make_dispatcher: Callable
) -> None:
    trusted = {"ca_file": str(certificate)} if trust == "ca_file" else {"verify_tls": False}
    dispatcher = make_dispatcher(f"https://127.0.0.1:{tls_port}", max_attempts=1, **trusted)

    [answer] = call_all(dispatcher, make_bodies(1))

    assert (answer.code, answer.body) == (None, ANSWER)


def test_proxy_from_environment_is_used(
    http_server: tuple[ThreadingHTTPServer, threading.Thread],
    make_dispatcher: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy, thread = http_server
    thread.start()
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
    dispatcher = make_dispatcher("http://model-server.invalid/v1", max_attempts=1)

    [answer] = call_all(dispatcher, make_bodies(1))

    assert answer.code is None
    assert proxy.seen == ["http://model-server.invalid/v1/chat/completions"]


def test_host_in_no_proxy_is_called_directly(
    serve: Callable, make_dispatcher: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda _: reply())
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    [answer] = call_all(make_dispatcher(server.base_url, max_attempts=1), make_bodies(1))

    assert answer.code is None


@pytest.mark.parametrize(
    ("base_url", "kind"),
    [("http://gpu:8000/v1", AsyncioHttpTransport), ("https://api.example.com/v1", PyreqwestTransport)],
    ids=["plain", "tls"],
)
def test_transport_is_selected_by_url_scheme(base_url: str, kind: type) -> None:
    opened: list[object] = []

    def keep(upstream: Upstream) -> object:
        opened.append(open_transport(upstream))
        return opened[0]

    with Dispatcher([Upstream(base_url=base_url)], open_transport=keep):
        assert isinstance(opened[0], kind)


def test_connections_do_not_exceed_requests_in_flight(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: reply(after_s=0.001))

    call_all(make_dispatcher(server.base_url, max_in_flight=4), make_bodies(200))

    assert server.connections <= 4


def test_connection_with_close_header_is_not_reused(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: reply(headers=[("connection", "close")]))

    answers = call_all(make_dispatcher(server.base_url, max_in_flight=1), make_bodies(5))

    assert [answer.attempts for answer in answers] == [1] * 5
    assert server.connections == 5


def test_connections_closed_by_the_server_fail_no_request(serve: Callable, make_dispatcher: Callable) -> None:
    def answer_and_close(_: Received) -> object:
        return raw(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(ANSWER), ANSWER))

    answers = call_all(make_dispatcher(serve(answer_and_close).base_url, max_in_flight=3), make_bodies(60))

    assert {answer.code for answer in answers} == {None}


@pytest.mark.skipif(sys.platform != "linux", reason="reads the options of sockets from /proc")
@pytest.mark.parametrize(
    "kind", [AsyncioHttpTransport, PyreqwestTransport, through_httpx()], ids=["plain", "tls", "httpx"]
)
def test_sockets_have_keepalive_and_user_timeout(
    kind: TransportFactory, gated: ScriptedServer, gate: threading.Event
) -> None:
    with (
        Dispatcher([Upstream(base_url=gated.base_url)], open_transport=kind) as dispatcher,
        open_session(dispatcher) as run,
        run.open_queue(0) as feed,
    ):
        feed.put(make_calls(make_bodies(1)))
        feed.end_input()
        until(lambda: gated.received)
        (found,) = _sockets_to(urlsplit(gated.base_url).port)
        gate.set()
        collect_results(feed)

    with found:
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert 30 <= found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 60
        assert 30_000 <= found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 120_000


def _sockets_to(port: int | None) -> list[socket.socket]:
    """Copies of this process's sockets that are connected to the port."""
    found = []
    for place in Path("/proc/self/fd").iterdir():
        try:
            each = socket.socket(fileno=os.dup(int(place.name)))
        except OSError:
            continue
        try:
            if each.getpeername()[1] == port:
                found.append(each)
                continue
        except (OSError, IndexError):
            pass
        each.close()
    return found


def test_reply_may_take_as_long_as_an_attempt(serve: Callable, make_dispatcher: Callable) -> None:
    server = serve(lambda _: reply(after_s=0.3))

    [answer] = call_all(make_dispatcher(server.base_url, total_timeout_s=20, max_attempts=1), make_bodies(1))

    assert answer.code is None
    assert Upstream(base_url="http://any", total_timeout_s=7_200).idle_timeout_s == 7_200
    assert Upstream(base_url="http://any", first_byte_timeout_s=30).idle_timeout_s == 30
    assert load_settings(base_url="http://any", request_timeout_s=3_600).all_upstreams[0].idle_timeout_s == 3_600


def test_custom_httpx_client_replaces_the_transport() -> None:
    def handle(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=COMPLETION | {"seen": request.headers["x-signed"]})

    async def sign(request: httpx.Request) -> None:
        request.headers["x-signed"] = "yes"

    def client(_: Upstream) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(handle), event_hooks={"request": [sign]})

    with Dispatcher([Upstream(base_url="http://anywhere")], open_transport=through_httpx(client)) as dispatcher:
        answers = call_all(dispatcher, make_bodies(3))

    assert [json.loads(answer.body)["seen"] for answer in answers] == ["yes"] * 3


def test_dispatchers_are_shared_until_closed(serve: Callable) -> None:
    upstreams = (Upstream(base_url=serve(lambda _: reply()).base_url),)
    first = dispatcher_for(upstreams)
    assert dispatcher_for(upstreams) is first

    first.close()
    with dispatcher_for(upstreams) as second:
        [answer] = call_all(second, make_bodies(1))

    assert answer.code is None


def test_unusable_upstream_names_the_wrong_setting(make_dispatcher: Callable) -> None:
    with pytest.raises(InvalidInput, match="ca_file"):
        make_dispatcher("https://127.0.0.1:1", ca_file="/nowhere/ca.pem")
