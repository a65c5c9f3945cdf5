"""The database's clock, by which leases expire, because the clocks of machines may differ."""

import threading
import time
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Double, Engine, cast, func, select

REMEASURE_AFTER_S: Final = 60.0
"""Seconds after which the offset of the database's clock is measured again."""


def database_time(engine: Engine) -> ColumnElement[float] | float:
    """Return an expression for the time in Unix seconds; SQLite uses this machine's clock."""
    if engine.dialect.name == "sqlite":
        return time.time()
    return _SERVER_TIME


# Not `now()`, which is the start of the transaction: it may have waited for locks since.
_SERVER_TIME: Final[ColumnElement[float]] = cast(func.extract("epoch", func.clock_timestamp()), Double)


class DatabaseClock:
    """Estimates the database's time without a query each time; used from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._ahead_s = 0.0
        self._measured_at = float("-inf")

    def needs_measuring(self) -> bool:
        """Return True if `measure` must be called before `now`."""
        return self._engine.dialect.name != "sqlite" and time.monotonic() - self._measured_at > REMEASURE_AFTER_S

    def measure(self, connection: Connection) -> None:
        """Measure the offset of the database's clock from this machine's monotonic clock."""
        start = time.monotonic()
        server_time: Any = connection.execute(select(_SERVER_TIME)).scalar_one()
        end = time.monotonic()
        # The server reads its clock somewhere in between: the middle halves the possible error.
        with self._lock:
            self._ahead_s, self._measured_at = float(server_time) - (start + end) / 2, end

    def now(self) -> float:
        """Return the time in Unix seconds."""
        if self._engine.dialect.name == "sqlite":
            return time.time()
        with self._lock:
            return time.monotonic() + self._ahead_s
