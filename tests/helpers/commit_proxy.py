"""A loopback server before PostgreSQL that loses the answers to COMMITs: it passes them on and hangs up."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import make_url

from helpers.server_threads import serving_on_thread

COMMIT = b"COMMIT\0"


class CommitProxy(socketserver.ThreadingTCPServer):
    """Loses the answer to each COMMIT that its rule chooses, by number from 0, and counts them."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Session)
        self._url = make_url(url)
        self.drops_reply: Callable[[int], bool] = lambda number: False
        self.drops_commit: Callable[[int], bool] = lambda number: False
        """The COMMITs that are lost before the server behind sees them."""
        self.commits = self.lost = 0
        self._lock = threading.Lock()

    @property
    def target(self) -> tuple[str, int]:
        return str(self._url.host), int(self._url.port or 5432)

    @property
    def url(self) -> str:
        """The database's URL by way of this server."""
        here = self._url.set(host="127.0.0.1", port=self.server_address[1])
        return here.render_as_string(hide_password=False)

    def next_drops(self) -> tuple[bool, bool]:
        """Count a COMMIT; whether it is to be lost, and whether its answer is."""
        with self._lock:
            number, self.commits = self.commits, self.commits + 1
            drops_commit, drops_reply = self.drops_commit(number), self.drops_reply(number)
            self.lost += drops_commit or drops_reply
            return drops_commit, drops_reply


class _Session(socketserver.BaseRequestHandler):
    server: CommitProxy

    def handle(self) -> None:
        with socket.create_connection(self.server.target) as server:
            self._loses = threading.Event()
            back = threading.Thread(target=self._pass_back, args=(server,), daemon=True)
            back.start()
            with suppress(OSError):
                while data := self.request.recv(65_536):
                    drops_commit, drops_reply = (
                        self.server.next_drops() if data.endswith(COMMIT) else (False, False)
                    )
                    if drops_commit:
                        break
                    if drops_reply:
                        self._loses.set()
                    server.sendall(data)
            _hang_up(server)
            _hang_up(self.request)
            back.join()

    def _pass_back(self, server: socket.socket) -> None:
        with suppress(OSError):
            while data := server.recv(65_536):
                if self._loses.is_set():
                    break
                self.request.sendall(data)
        _hang_up(self.request)


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def commit_proxy(url: str) -> Iterator[CommitProxy]:
    with serving_on_thread(CommitProxy(url)) as server:
        yield server
