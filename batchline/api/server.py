"""Serves the API until it is told to stop."""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from batchline.api.app import create_app
from batchline.client import Batchline
from batchline.client.api_keys import ApiKeys
from batchline.models.addresses import is_loopback
from batchline.models.errors import InvalidInput
from batchline.models.stop_signals import StopSignals

BACKLOG: Final = 2_048
KEEP_ALIVE_S: Final = 75
"""How long a connection may rest between requests: longer than clients and proxies keep one that they use again.

Who sends on a connection at the moment in which it is closed gets no answer, and cannot tell what became of that.
"""

HEAD_BYTES: Final = 65_536
"""Size of the largest head of a request."""

FILES: Final = 16_384
"""Open files that a server should be allowed: connections from clients, to upstreams, storage and the database."""

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
AppFactory = Callable[[FastAPI], ASGIApp]
SHUTDOWN_TIMEOUT_S: Final = 10
"""How long answers may take that are under way when the server stops."""

SWITCH_INTERVAL_S: Final = 0.001
"""Seconds that a thread that checks files or packs answers may keep the GIL while the event loop waits for it."""

UVICORN_OPTIONS: Final[Mapping[str, Any]] = {
    "http": "h11",  # the only one whose size of a head is bounded
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
"""uvicorn's options."""


class Server:
    """The API at an address, which it has from the start; batches run where the client's run.

    `face` puts more before the API, such as pages for people.
    Raises `InvalidInput` where it cannot listen there, for an address beyond this machine without a key, and where
    nothing is configured that batches could be run by.
    """

    def __init__(self, client: Batchline, *, host: str, port: int, app_factory: AppFactory | None = None) -> None:
        is_local, keys = is_loopback(host), ApiKeys(client)
        if not is_local and not keys.has_valid_key():
            raise InvalidInput(
                f"{host} can be reached from other machines, and there is no key: make one with `batchline keys "
                "create NAME --role manager`, or serve at 127.0.0.1",
                param="host",
            )
        client.runner.require_configured()
        if client.services.settings.serve_via == "process":
            client.share_quotas()
        self._listener = _bind_socket(host, port)
        self.url = _base_url(self._listener)
        self.allows_anonymous = is_local and not keys.is_key_required()
        """Whether whoever asks is let in."""
        api = create_app(client, allow_anonymous=is_local)
        self._server = _UvicornServer(uvicorn.Config(app_factory(api) if app_factory else api, **UVICORN_OPTIONS))

    def run(self) -> None:
        """Serve until SIGINT, SIGTERM or `stop`; then stop the batches that run, which can go on later."""
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        _raise_file_limit()
        with self._listener, _frozen_memory():
            self._server.run(sockets=[self._listener])

    def stop(self) -> None:
        """Have `run` end; may be called from any thread."""
        self._server.should_exit = True


@contextmanager
def _frozen_memory() -> Iterator[None]:
    """Keep what is in memory now out of garbage collections, which would stop all requests for 50 to 100 ms."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class _UvicornServer(uvicorn.Server):
    """Stops cleanly at the first signal and is killed by a later one; uvicorn's own dies of the first as well."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals within the block, where that can be."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        stop_signals = StopSignals()

        def stop(number: int, frame: FrameType | None) -> None:
            ordinal = stop_signals.classify_next()
            if ordinal == "later":
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            if ordinal == "first":
                self.handle_exit(number, frame)

        previous_handlers = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous_handlers.items():
                signal.signal(number, handler)


def _raise_file_limit() -> None:
    """Let this process open as many files as it needs, so far as the system's hard limit allows."""
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


def _base_url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
