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
from batchline.storage.records.database import with_retries

_T = TypeVar("_T")

COMMIT_OUTCOME_TIMEOUT_S = 10.0
"""Seconds to wait for a transaction whose connection was lost and that the server still works on."""

COMMIT_OUTCOME_POLL_S = 0.2


class Transactions:
    """A database that several processes share; may be used from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        self._engine.dispose()

    def _run_read(self, operation: Callable[[Connection], _T]) -> _T:
        def run_once() -> _T:
            with self._engine.connect().execution_options(reads=True) as connection:
                return operation(connection)

        return with_retries(run_once)

    def _run_write(self, operation: Callable[[Connection], _T]) -> _T:
        """Return the result of the work, which is done once.

        Raises `Conflict` if a row of that key is there, made by another, and `StorageFault` if the database fails:
        then the work may have been done.
        """
        return with_retries(_WriteTransaction(self._engine, operation).run)


class _WriteTransaction(Generic[_T]):
    """A transaction that can be tried again without being done twice."""

    def __init__(self, engine: Engine, operation: Callable[[Connection], _T]) -> None:
        self._engine = engine
        self._operation = operation
        self._uncertain_commit: tuple[int | None, _T] | None = None
        """The id and the result of a transaction that PostgreSQL was told to commit."""

    def run(self) -> _T:
        """Do the work in a transaction, unless the one before has been committed."""
        if self._uncertain_commit is not None:
            transaction_id, result = self._uncertain_commit
            if transaction_id is None or _was_committed(self._engine, transaction_id):
                return result
            self._uncertain_commit = None
        try:
            with self._engine.begin() as connection:
                result = self._operation(connection)
                if connection.dialect.name == "postgresql":
                    self._uncertain_commit = _transaction_id(connection), result
        except IntegrityError as error:
            raise Conflict("there is one already") from error
        return result


def _transaction_id(connection: Connection) -> int | None:
    """The id to ask for the transaction's outcome by; None if it has written nothing, so that none matters."""
    transaction_id: int | None = connection.execute(text("SELECT txid_current_if_assigned()")).scalar()
    return transaction_id


def _was_committed(engine: Engine, transaction_id: int) -> bool:
    """True if that transaction of PostgreSQL was committed; raises `StorageFault` if it stays undecided."""
    deadline = time.monotonic() + COMMIT_OUTCOME_TIMEOUT_S
    while (outcome := _transaction_outcome(engine, transaction_id)) == "in progress":
        if time.monotonic() >= deadline:
            raise StorageFault("the connection to the database was lost during a commit, which is still under way")
        time.sleep(COMMIT_OUTCOME_POLL_S)
    return outcome == "committed"


def _transaction_outcome(engine: Engine, transaction_id: int) -> str | None:
    try:
        with engine.connect().execution_options(reads=True) as connection:
            return connection.execute(text("SELECT txid_status(:number)"), {"number": transaction_id}).scalar()
    except DataError:  # a standby that has taken over has not come to that id
        return None
