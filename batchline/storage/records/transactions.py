"""Runs database operations, each in one transaction, and retries them if the database is briefly unavailable.

A COMMIT whose reply is lost may have been executed. Before the operation is repeated, PostgreSQL is asked for the
status of that transaction (docs/decisions/0008-commits-in-doubt.md). SQLite's COMMIT is a call in this process,
which does not fail after it was executed.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, Executable, Row, text
from sqlalchemy.exc import DataError, IntegrityError

from batchline.models.errors import Conflict, StorageFault
from batchline.storage.records.database import with_retries

_T = TypeVar("_T")

COMMIT_OUTCOME_TIMEOUT_S = 10.0
"""Seconds to wait for the server to finish a transaction whose connection was lost."""

COMMIT_OUTCOME_POLL_S = 0.2


class Transactions:
    """A database that several processes share; used from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        self._engine.dispose()

    def _run_read(self, operation: Callable[[Connection], _T]) -> _T:
        def run_once() -> _T:
            # On SQLite this transaction takes no write lock, so readers do not wait for writers.
            with self._engine.connect().execution_options(reads=True) as connection:
                return operation(connection)

        return with_retries(run_once)

    def _read_all(self, statement: Executable) -> Sequence[Row[Any]]:
        return self._run_read(lambda connection: connection.execute(statement).all())

    def _read_first(self, statement: Executable) -> Row[Any] | None:
        return self._run_read(lambda connection: connection.execute(statement).first())

    def _run_write(self, operation: Callable[[Connection], _T]) -> _T:
        """Return the result of the operation, which takes effect at most once.

        Raises `Conflict` if it inserts a key that exists, and `StorageFault` if the database fails; the operation
        may have taken effect then.
        """
        uncertain_commit: tuple[int | None, _T] | None = None
        """The id and result of the last transaction that was to be committed, on PostgreSQL."""

        def run_once() -> _T:
            nonlocal uncertain_commit
            if uncertain_commit is not None:
                transaction_id, result = uncertain_commit
                if transaction_id is None or _was_committed(self._engine, transaction_id):
                    return result
                uncertain_commit = None
            try:
                with self._engine.begin() as connection:
                    result = operation(connection)
                    # Noted before the COMMIT, whose reply may be lost.
                    if connection.dialect.name == "postgresql":
                        # None if it wrote nothing, so that its outcome does not matter.
                        transaction_id = connection.execute(text("SELECT txid_current_if_assigned()")).scalar()
                        uncertain_commit = transaction_id, result
            except IntegrityError as error:
                raise Conflict("a record with this key exists already") from error
            return result

        return with_retries(run_once)

    def _write(self, statement: Executable) -> None:
        self._run_write(lambda connection: connection.execute(statement))


def _was_committed(engine: Engine, transaction_id: int) -> bool:
    """Return True if the transaction was committed; raises `StorageFault` if it stays in progress."""
    # The server may not have noticed the lost connection yet, and can still commit.
    deadline = time.monotonic() + COMMIT_OUTCOME_TIMEOUT_S
    query = text("SELECT txid_status(:number)").bindparams(number=transaction_id)
    while time.monotonic() < deadline:
        try:
            with engine.connect().execution_options(reads=True) as connection:
                outcome = connection.execute(query).scalar()
        except DataError:  # after a failover the new server has not reached that id: the commit is lost
            return False
        if outcome != "in progress":
            return bool(outcome == "committed")
        time.sleep(COMMIT_OUTCOME_POLL_S)
    raise StorageFault("the connection to the database was lost during a commit, which is still in progress")
