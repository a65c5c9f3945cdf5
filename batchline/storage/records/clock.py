"""The database's clock, by which leases are judged: the clocks of the machines that hold them may differ."""

import threading
import time
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Double, Engine, cast, func, select

REMEASURE_AFTER_S: Final = 60.0
"""Seconds after which the difference to the database's clock is measured again."""


def database_time(engine: Engine) -> ColumnElement[float] | float:
    """Return the time in Unix seconds for use in a statement; SQLite's clock is this machine's."""
    if engine.dialect.name == "sqlite":
        return time.time()
    return _SERVER_TIME


_SERVER_TIME: Final[ColumnElement[float]] = cast(func.extract("epoch", func.clock_timestamp()), Double)


class DatabaseClock:
    """Tells the database's time without asking each time; for any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._ahead_s = 0.0
        self._measured_at = float("-inf")

    def needs_measuring(self) -> bool:
        """Return True if `measure` is to be called before `now`."""
        return self._engine.dialect.name != "sqlite" and time.monotonic() - self._measured_at > REMEASURE_AFTER_S

    def measure(self, connection: Connection) -> None:
        """Find out by how much the database's clock is ahead of this machine's monotonic one."""
        start = time.monotonic()
        server_time: Any = connection.execute(select(_SERVER_TIME)).scalar_one()
        end = time.monotonic()
        with self._lock:
            self._ahead_s, self._measured_at = float(server_time) - (start + end) / 2, end

    def now(self) -> float:
        """Return the time in Unix seconds."""
        if self._engine.dialect.name == "sqlite":
            return time.time()
        with self._lock:
            return time.monotonic() + self._ahead_s
