"""The database's clock, by which leases expire, because the clocks of machines may differ."""

import time
from typing import Final

from sqlalchemy import ColumnElement, Double, Engine, cast, func

# Not `now()`, which is the start of the transaction: it may have waited for locks since.
_SERVER_TIME: Final[ColumnElement[float]] = cast(func.extract("epoch", func.clock_timestamp()), Double)


def database_time(engine: Engine) -> ColumnElement[float] | float:
    """Return an expression for the time in Unix seconds; SQLite uses this machine's clock."""
    return time.time() if engine.dialect.name == "sqlite" else _SERVER_TIME
