"""Case-insensitive search in a batch's id, filename and metadata: the folded text, and the condition on it."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import ColumnElement, func

LONGEST_PATTERN: Final = 10_000
"""Most characters of a search that is a LIKE pattern: SQLite refuses patterns of more than 50,000 bytes."""

_SPECIAL: Final = frozenset("%_\\")
"""Characters with a meaning in patterns; on PostgreSQL the backslash has one without ESCAPE, too."""

SEPARATOR: Final = "\ufdd0"
_KEPT_AS: Final = {0: "\ufdd1", 0xFDD0: "\ufffd", 0xFDD1: "\ufffd"}
"""What stands for NUL, which PostgreSQL does not hold, and for the separator and that: they are no characters."""


def folded(text: str) -> str:
    """The text as it is kept and compared: two texts that differ in case only are the same.

    Each character is folded by itself, so that a part of a text is folded to a part of it.
    """
    return text.casefold().translate(_KEPT_AS)


def search_text(batch_id: str, filename: str, metadata: Mapping[str, str] | None) -> str:
    """All that a search looks into, folded, with no search reaching from one text into the next."""
    texts = (batch_id, filename, *(text for pair in (metadata or {}).items() for text in pair))
    return SEPARATOR.join(map(folded, texts))


def is_storable(text: str) -> bool:
    """Whether every database takes the text: it has no NUL and no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def contains(column: ColumnElement[str], wanted: str) -> ColumnElement[bool]:
    """Return the condition that the folded text is part of the column."""
    if len(wanted) > LONGEST_PATTERN:
        return func.replace(column, wanted, "") != column
    if _SPECIAL.isdisjoint(wanted):  # PostgreSQL would apply ESCAPE to the pattern again for each row
        return column.like(f"%{wanted}%")
    return column.contains(wanted, autoescape=True)
