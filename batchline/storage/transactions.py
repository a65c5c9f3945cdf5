"""Reading and writing the database: each piece of work in one transaction, tried again if the database was away.

A COMMIT whose answer is lost may have been carried out. Before the work is repeated, PostgreSQL is asked what
became of that transaction (docs/decisions/0008-commits-in-doubt.md). SQLite's COMMIT is a call in this process,
which does not fail after it was carried out.
"""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DataError, IntegrityError

from batchline.models.errors import Conflict, StorageFault
from batchline.storage.database import retried

_T = TypeVar("_T")

UNDECIDED_S = 10.0
"""Seconds to wait for a transaction whose connection was lost and that the server still works on."""

ASK_AGAIN_S = 0.2


class Transactions:
    """A database that several processes share; may be used from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        self._engine.dispose()

    def _read(self, work: Callable[[Connection], _T]) -> _T:
        def run() -> _T:
            with self._engine.connect().execution_options(reads=True) as connection:
                return work(connection)

        return retried(run)

    def _write(self, work: Callable[[Connection], _T]) -> _T:
        """Return the result of the work, which is done once.

        Raises `Conflict` if a row of that key is there, made by another, and `StorageFault` if the database fails:
        then the work may have been done.
        """
        return retried(_Writing(self._engine, work).run)


class _Writing(Generic[_T]):
    """A transaction that can be tried again without being done twice."""

    def __init__(self, engine: Engine, work: Callable[[Connection], _T]) -> None:
        self._engine = engine
        self._work = work
        self._in_doubt: tuple[int | None, _T] | None = None
        """The id and the result of a transaction that PostgreSQL was told to commit."""

    def run(self) -> _T:
        """Do the work in a transaction, unless the one before has been committed."""
        if self._in_doubt is not None:
            number, result = self._in_doubt
            if number is None or _was_committed(self._engine, number):
                return result
            self._in_doubt = None
        try:
            with self._engine.begin() as connection:
                result = self._work(connection)
                if connection.dialect.name == "postgresql":
                    self._in_doubt = _transaction_id(connection), result
        except IntegrityError as error:
            raise Conflict("there is one already") from error
        return result


def _transaction_id(connection: Connection) -> int | None:
    """The id to ask for the transaction's outcome by; None if it has written nothing, so that none matters."""
    number: int | None = connection.execute(text("SELECT txid_current_if_assigned()")).scalar()
    return number


def _was_committed(engine: Engine, number: int) -> bool:
    """True if that transaction of PostgreSQL was committed; raises `StorageFault` if it stays undecided."""
    give_up_at = time.monotonic() + UNDECIDED_S
    while (outcome := _outcome(engine, number)) == "in progress":
        if time.monotonic() >= give_up_at:
            raise StorageFault("the connection to the database was lost during a commit, which is still under way")
        time.sleep(ASK_AGAIN_S)
    return outcome == "committed"


def _outcome(engine: Engine, number: int) -> str | None:
    try:
        with engine.connect().execution_options(reads=True) as connection:
            return connection.execute(text("SELECT txid_status(:number)"), {"number": number}).scalar()
    except DataError:  # a standby that has taken over has not come to that id
        return None
