"""Statements that are asked again and again: compiled once, and run as their database takes them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Dialect, Select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler


class Prepared(NamedTuple):
    """A statement's text, and what goes into it: to look that up again takes as long as a short statement does."""

    text: str
    places: tuple[str, ...] | None
    constants: Mapping[str, object]

    def bound(self, values: Mapping[str, object]) -> Any:
        """Those values as the driver takes them."""
        named = {**self.constants, **values}
        return named if self.places is None else tuple(named[name] for name in self.places)


Question = tuple[Prepared, Mapping[str, object]]
"""A statement and its values."""


def prepared(statement: Select[Any], dialect: Dialect) -> Prepared:
    """The statement for that database; its results come as the driver gives them."""
    compiled: SQLCompiler = statement.compile(dialect=dialect)
    places = tuple(compiled.positiontup or ()) if dialect.positional else None
    constants = {name: value for name, value in compiled.params.items() if value is not None}
    return Prepared(compiled.string, places, constants)


def answers(connection: Connection, questions: Sequence[Question]) -> list[list[tuple[Any, ...]]]:
    """The rows of each; PostgreSQL is sent the statements at once, so that there is one wait for all.

    Raises as the connection does, which is closed then: the driver takes what it had sent behind a statement that
    failed for known to the server. With a connection that is lost, all that are idle are given up.
    """
    driver: Any = connection.connection.driver_connection
    asked = [(statement.text, statement.bound(values)) for statement, values in questions]
    try:
        if connection.dialect.name == "postgresql" and len(asked) > 1:
            with driver.pipeline():
                return [cursor.fetchall() for cursor in [driver.execute(*each) for each in asked]]
        return [driver.execute(*each).fetchall() for each in asked]
    except connection.dialect.loaded_dbapi.Error as error:
        is_lost = bool(getattr(driver, "closed", False))
        connection.invalidate(error)
        if is_lost:
            connection.engine.dispose()
        raise DBAPIError(None, None, error, connection_invalidated=is_lost) from error
