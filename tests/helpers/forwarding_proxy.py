"""A loopback server that stands before an S3 server and does to some requests what a test says."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from helpers.server_threads import serving_on_thread

Rule = Callable[["Handler"], bool]
"""Return True if the rule has answered the request; otherwise it is forwarded."""


class ForwardingProxy(ThreadingHTTPServer):
    """Keeps the method and path of each request; with nothing behind it, it deals with all of them by its rule."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, target: str | None, rule: Rule) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = target
        self.rule = rule
        self.seen: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: ForwardingProxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.seen.append(f"{self.command} {self.path}")
        if not self.server.rule(self):
            self.send(*self.ask(body))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815 - http.server's names

    def ask(self, body: bytes = b"") -> tuple[int, list[tuple[str, str]], bytes]:
        """Return the target's response to this request."""
        assert self.server.target is not None
        connection = HTTPConnection(self.server.target.removeprefix("http://"))
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def send(self, status: int, headers: list[tuple[str, str]], body: bytes, *, cut: bool = False) -> None:
        """Answer with that, or with the first half of that body and the end of the connection."""
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in {"content-length", "transfer-encoding", "connection", "date", "server"}:
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", str(len(body)))
        self.send_header("content-length", length if self.command == "HEAD" else str(len(body)))
        self.end_headers()
        if cut:
            self.close_connection = True
            body = body[: len(body) // 2]
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep still."""


@contextmanager
def forwarding_proxy(target: str | None, rule: Rule | None = None) -> Iterator[ForwardingProxy]:
    with serving_on_thread(ForwardingProxy(target, rule or forward)) as server:
        yield server


# Rules


def forward(request: Handler) -> bool:
    """Leaves every request alone."""
    return False


def respond_with(status: int, code: str = "", *, text: str = "") -> Rule:
    """Answers everything so, with S3's error of that code or with that text."""
    error = f"<Error><Code>{code}</Code><Message>told so</Message></Error>" if code else text

    def rule(request: Handler) -> bool:
        request.send(status, [("content-type", "application/xml")], error.encode())
        return True

    return rule


def hang_up(request: Handler) -> bool:
    """Ends the connection without an answer."""
    request.close_connection = True
    return True


def only_first(rule: Rule, *, when: Callable[[Handler], bool]) -> Rule:
    """The rule for the first such request."""
    done = threading.Event()

    def only_once(request: Handler) -> bool:
        if done.is_set() or not when(request):
            return False
        done.set()
        return rule(request)

    return only_once


def truncate_body(request: Handler) -> bool:
    """Half of what the server behind answers."""
    request.send(*request.ask(), cut=True)
    return True
