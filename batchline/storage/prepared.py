"""Statements that are asked again and again: compiled once, and run as their database takes them."""

from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from sqlalchemy import Connection, CursorResult, Dialect
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.elements import ClauseElement


class Prepared(NamedTuple):
    """A statement's text, and what goes into it: to look that up again takes as long as a short statement does."""

    text: str
    places: tuple[str, ...] | None
    constants: Mapping[str, object]

    def run(self, connection: Connection, values: Mapping[str, object]) -> CursorResult[Any]:
        """Execute it with those values; raises as the connection does."""
        bound = {**self.constants, **values}
        if self.places is None:
            return connection.exec_driver_sql(self.text, bound)
        return connection.exec_driver_sql(self.text, tuple(bound[name] for name in self.places))


def prepared(statement: ClauseElement, dialect: Dialect) -> Prepared:
    """The statement for that database; its results come as the driver gives them."""
    compiled = cast("SQLCompiler", statement.compile(dialect=dialect))
    places = tuple(compiled.positiontup or ()) if dialect.positional else None
    constants = {name: value for name, value in compiled.params.items() if value is not None}
    return Prepared(compiled.string, places, constants)
