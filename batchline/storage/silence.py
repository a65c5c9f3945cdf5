"""Bounds on how long PostgreSQL may keep a connection waiting.

A server or a network path that goes silent sends no error. TCP keepalive finds a dead peer, `statement_timeout`
ends a statement at a server that works, and the watchdog gives up a connection through a proxy that lives but
passes nothing on.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Engine, event
from sqlalchemy.engine import URL
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

log = logging.getLogger(__name__)

CONNECT_S: Final = 10
STATEMENT_S: Final = 30
TRANSACTION_S: Final = 60
"""Seconds after which the server ends a transaction whose client sends nothing: its locks keep others waiting."""

SILENT_S: Final = 45.0
"""Seconds for which a connection may be in use: longer than any statement may take."""

CHECK_S: Final = 5.0

OPTIONS: Final[Mapping[str, int]] = {
    "connect_timeout": CONNECT_S,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Connection options of libpq; in seconds, and milliseconds for the last."""


def _set_unless_set(name: str, seconds: int) -> str:
    """Return the SQL that sets a timeout unless the URL's options, the role or the database set one."""
    known = f"current_setting('{name}')"
    return f"set_config('{name}', CASE {known} WHEN '0' THEN '{seconds}s' ELSE {known} END, false)"


_SET_TIMEOUTS: Final = (
    f"SELECT {_set_unless_set('statement_timeout', STATEMENT_S)}, "
    f"{_set_unless_set('idle_in_transaction_session_timeout', TRANSACTION_S)}"
)


def connect_arguments(url: URL) -> dict[str, int]:
    """Return the driver's arguments for connections that notice a dead peer; what the URL says itself is kept."""
    return {name: value for name, value in OPTIONS.items() if name not in url.query}


def bound_waiting(engine: Engine) -> None:
    """Bound the statements and transactions of the engine's connections."""
    watchdog = _Watchdog()

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        del record
        before, connection.autocommit = connection.autocommit, True  # one round trip instead of three
        connection.execute(_SET_TIMEOUTS)
        connection.autocommit = before

    @event.listens_for(engine, "checkout")
    def begin(connection: DBAPIConnection, record: ConnectionPoolEntry, proxy: object) -> None:
        del proxy
        watchdog.begin(id(record), connection)

    @event.listens_for(engine, "checkin")
    def end(connection: object, record: ConnectionPoolEntry) -> None:
        del connection
        watchdog.end(id(record))

    @event.listens_for(engine, "invalidate")
    def give_up(connection: object, record: ConnectionPoolEntry, error: object) -> None:
        del connection, error
        watchdog.end(id(record))


class _Watchdog:
    """A thread that breaks connections which have been in use for too long; it ends while none is in use."""

    def __init__(self) -> None:
        self._in_use: dict[int, tuple[float, DBAPIConnection]] = {}
        self._lock = threading.Lock()
        self._process = 0

    def begin(self, number: int, connection: DBAPIConnection) -> None:
        """Note that a connection is in use from now on."""
        with self._lock:
            self._in_use[number] = (time.monotonic(), connection)
            if self._process != os.getpid():  # a forked process has the record of the thread, and not the thread
                self._process = os.getpid()
                threading.Thread(target=self._watch, name="database watchdog", daemon=True).start()

    def end(self, number: int) -> None:
        """Note that the connection is no longer in use."""
        with self._lock:
            self._in_use.pop(number, None)

    def _watch(self) -> None:
        while True:
            time.sleep(CHECK_S)
            silent_since = time.monotonic() - SILENT_S
            with self._lock:
                if not self._in_use:  # the thread of an engine that is used no more would live as long as we do
                    self._process = 0
                    return
                late = [number for number, (since, _) in self._in_use.items() if since < silent_since]
                connections = [self._in_use.pop(number)[1] for number in late]
            for connection in connections:
                _break(connection)


def _break(connection: DBAPIConnection) -> None:
    """End the connection under the thread that waits for it, which then gets an error."""
    # Not `close`, which is not safe while another thread is in the midst of a statement.
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)
    except Exception as error:  # noqa: BLE001 - it may have been closed just now, and the thread must live on
        log.debug("connection not broken: %s", error)
    else:
        log.warning("the database has not answered for %.0f s; the connection is given up", SILENT_S)
