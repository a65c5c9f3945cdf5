"""A loopback server that answers every request alike and keeps what it was sent."""

import contextlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from helpers.server_threads import serving_on_thread

ANSWER = (
    b'{"choices":[{"index":0,"message":{"role":"assistant","content":"Yes."}}],'
    b'"results":[{"flagged":false}],"usage":{}}'
)
"""An answer of both chat and moderations."""


class RecordingUpstream(ThreadingHTTPServer):
    """Keeps each request's path and body; calls `before_answer`, from many threads, before it answers."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.sent: list[tuple[str, bytes]] = []
        self.before_answer: Callable[[], None] = lambda: None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: RecordingUpstream

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.sent.append((self.path, body))
        self.server.before_answer()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(ANSWER)))
        self.end_headers()
        self.wfile.write(ANSWER)

    def log_message(self, *_: object) -> None:
        """Keep still."""


@contextlib.contextmanager
def recording_upstream() -> Iterator[RecordingUpstream]:
    with serving_on_thread(RecordingUpstream()) as server:
        yield server
