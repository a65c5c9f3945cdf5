"""Timeouts for connections to PostgreSQL.

A server or network path that goes silent sends no error. TCP keepalive detects a dead peer, `statement_timeout`
ends a statement on a live server, and the watchdog breaks connections through a proxy that is alive but forwards
nothing.
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

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 10
STATEMENT_TIMEOUT_S: Final = 30
IDLE_TRANSACTION_TIMEOUT_S: Final = 60
"""Seconds after which the server ends a transaction of a silent client, whose locks block others."""

MAX_USE_S: Final = 45.0
"""Maximum seconds for which a connection may be in use: longer than any statement may take."""

WATCHDOG_INTERVAL_S: Final = 5.0

LIBPQ_OPTIONS: Final[Mapping[str, int]] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives": 1,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}
"""Connection options of libpq, in seconds; the last one in milliseconds."""


def _default_timeout_sql(name: str, seconds: int) -> str:
    """Return the SQL that sets a timeout unless the URL's options, the role or the database set one."""
    current = f"current_setting('{name}')"
    return f"set_config('{name}', CASE {current} WHEN '0' THEN '{seconds}s' ELSE {current} END, false)"


_SET_TIMEOUTS_SQL: Final = (
    f"SELECT {_default_timeout_sql('statement_timeout', STATEMENT_TIMEOUT_S)}, "
    f"{_default_timeout_sql('idle_in_transaction_session_timeout', IDLE_TRANSACTION_TIMEOUT_S)}"
)


def connect_arguments(url: URL) -> dict[str, int]:
    """Return the driver's arguments that detect a dead peer, without those that the URL sets."""
    return {name: value for name, value in LIBPQ_OPTIONS.items() if name not in url.query}


def apply_timeouts(engine: Engine) -> None:
    """Apply the timeouts to the engine's connections."""
    watchdog = _ConnectionWatchdog()
    event.listen(engine, "connect", _set_timeouts)
    event.listen(engine, "checkout", lambda connection, record, _: watchdog.watch(id(record), connection))
    event.listen(engine, "checkin", lambda _, record: watchdog.unwatch(id(record)))
    event.listen(engine, "invalidate", lambda _, record, __: watchdog.unwatch(id(record)))


def _set_timeouts(connection: Any, record: object) -> None:
    del record
    previous_autocommit, connection.autocommit = connection.autocommit, True  # one round trip instead of three
    connection.execute(_SET_TIMEOUTS_SQL)
    connection.autocommit = previous_autocommit


class _ConnectionWatchdog:
    """A thread that breaks connections in use for too long; it runs only while connections are in use."""

    def __init__(self) -> None:
        self._in_use: dict[int, tuple[float, DBAPIConnection]] = {}
        self._lock = threading.Lock()
        self._pid = 0

    def watch(self, record_id: int, connection: DBAPIConnection) -> None:
        """Register a connection that is in use from now on."""
        with self._lock:
            self._in_use[record_id] = (time.monotonic(), connection)
            if self._pid != os.getpid():  # no thread yet, or this process was forked, without the thread
                self._pid = os.getpid()
                threading.Thread(target=self._watch_loop, name="database watchdog", daemon=True).start()

    def unwatch(self, record_id: int) -> None:
        """Unregister a connection that is no longer in use."""
        with self._lock:
            self._in_use.pop(record_id, None)

    def _watch_loop(self) -> None:
        while True:
            time.sleep(WATCHDOG_INTERVAL_S)
            in_use_since = time.monotonic() - MAX_USE_S
            with self._lock:
                if not self._in_use:  # end, else the thread of an unused engine would live as long as the process
                    self._pid = 0
                    return
                overdue = [record_id for record_id, (since, _) in self._in_use.items() if since < in_use_since]
                connections = [self._in_use.pop(record_id)[1] for record_id in overdue]
            # Without the lock: shutting down may block, and other threads must get connections meanwhile.
            for connection in connections:
                # The thread that waits for it gets an error. `close` is not safe while that executes a statement.
                try:
                    with socket.socket(fileno=os.dup(connection.fileno())) as duplicate:
                        duplicate.shutdown(socket.SHUT_RDWR)
                except Exception as error:  # noqa: BLE001 - it may be closed already, and the thread must continue
                    log.debug("a connection cannot be shut down: %s", error)
                else:
                    log.warning("the database has not answered for %.0f s; its connection is closed", MAX_USE_S)
