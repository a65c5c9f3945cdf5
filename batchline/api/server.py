"""Serve the API until SIGINT, SIGTERM or `stop`."""

from __future__ import annotations

import gc
import resource
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from batchline.api.app import create_app
from batchline.client import Batchline
from batchline.client.api_keys import ApiKeys
from batchline.models.addresses import is_loopback
from batchline.models.errors import InvalidInput
from batchline.models.stop_signals import handle_stop_signals

BACKLOG: Final = 2_048
KEEP_ALIVE_S: Final = 75
"""Seconds that an idle connection stays open: longer than clients and proxies reuse one.

A request sent on a connection that is just being closed fails, and the client cannot know if it was processed.
"""

HEAD_BYTES: Final = 65_536
"""Maximum size of a request's headers."""

FILES: Final = 16_384
"""Open files that a server should be allowed: connections from clients, to upstreams, storage and the database."""

AppFactory = Callable[[FastAPI], ASGIApp]
SHUTDOWN_TIMEOUT_S: Final = 10
"""Seconds that responses in flight may take when the server stops."""

SWITCH_INTERVAL_S: Final = 0.001
"""Seconds that a thread may keep the GIL, to check files or compress, while the event loop waits for it."""

UVICORN_OPTIONS: Final[Mapping[str, Any]] = {
    "http": "h11",  # uvicorn's only parser with a limit on header size
    "h11_max_incomplete_event_size": HEAD_BYTES,
    "ws": "none",
    "lifespan": "on",
    "log_config": None,
    "access_log": False,
    "server_header": False,
    "backlog": BACKLOG,
    "timeout_keep_alive": KEEP_ALIVE_S,
    "timeout_graceful_shutdown": SHUTDOWN_TIMEOUT_S,
}
"""Options of uvicorn."""


class Server:
    """The API at an address, bound on construction; batches run on the client's runner.

    `app_factory` wraps the API, for example with web pages. Raises `InvalidInput` if the address cannot be bound,
    if it is not loopback and no key exists, and if nothing is configured that can run batches.
    """

    def __init__(self, client: Batchline, *, host: str, port: int, app_factory: AppFactory | None = None) -> None:
        is_local, keys = is_loopback(host), ApiKeys(client)
        if not is_local and not keys.has_valid_key():
            raise InvalidInput(
                f"{host} can be reached from other machines, and there is no key: create one with `batchline keys "
                "create NAME --role manager`, or serve at 127.0.0.1",
                param="host",
            )
        client.prepare_to_serve()
        self._listener = _bind_socket(host, port)
        bound_host, bound_port = self._listener.getsockname()[:2]
        self.url = f"http://{f'[{bound_host}]' if ':' in bound_host else bound_host}:{bound_port}/v1"
        self.allows_anonymous = is_local and not keys.is_key_required()
        """True if requests need no key."""
        api = create_app(client, allow_anonymous=is_local)
        self._server = _UvicornServer(uvicorn.Config(app_factory(api) if app_factory else api, **UVICORN_OPTIONS))

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or `stop`; then stop running batches, which can be resumed."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        _raise_file_limit()
        with self._listener, _frozen_memory():
            self._server.run(sockets=[self._listener])

    def stop(self) -> None:
        """Make `run` return; thread-safe."""
        self._server.should_exit = True


@contextmanager
def _frozen_memory() -> Iterator[None]:
    """Exclude present objects from garbage collection, whose full passes would pause requests for 50 to 100 ms."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _UvicornServer(uvicorn.Server):
    """A server that stops cleanly at the first signal and dies at a later one; uvicorn dies at the first too."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override] # the same for `with`
        """Handle the signals within the block, if it runs on the main thread."""
        return handle_stop_signals(lambda number: self.handle_exit(number, None))


def _raise_file_limit() -> None:
    """Raise this process's limit of open files to `FILES`, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _bind_socket(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise InvalidInput(
            f"cannot listen at {host} port {port}: {reason}; choose another with --port", param="port"
        ) from error
