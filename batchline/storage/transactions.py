"""Reading and writing the database: each piece of work in one transaction, tried again where a lock was away."""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import IntegrityError

from batchline.models.errors import Conflict
from batchline.storage.database import retried

_T = TypeVar("_T")


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
        def run() -> _T:
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except IntegrityError as error:
                raise Conflict("there is one already") from error

        return retried(run)
