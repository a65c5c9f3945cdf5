"""Case-insensitive search in a batch's id, filename and metadata: the folded text, and the condition on it."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import ColumnElement, func

MAX_PATTERN_CHARACTERS: Final = 10_000
"""Most characters of a search that is a LIKE pattern: SQLite refuses patterns of more than 50,000 bytes."""

_SPECIAL: Final = frozenset("%_\\")
"""Characters with a meaning in patterns; on PostgreSQL the backslash has one without ESCAPE, too."""

SEPARATOR: Final = "\ufdd0"
_REPLACEMENTS: Final = {0: "\ufdd1", 0xFDD0: "\ufffd", 0xFDD1: "\ufffd"}
"""What stands for NUL, which PostgreSQL does not hold, and for the separator and that: they are no characters."""


def casefolded(text: str) -> str:
    """The text as it is kept and compared: two texts that differ in case only are the same.

    Each character is folded by itself, so that a part of a text is folded to a part of it.
    """
    return text.casefold().translate(_REPLACEMENTS)


def search_text(batch_id: str, filename: str, metadata: Mapping[str, str] | None) -> str:
    """All that a search looks into, folded, with no search reaching from one text into the next."""
    texts = (batch_id, filename, *(text for pair in (metadata or {}).items() for text in pair))
    return SEPARATOR.join(map(casefolded, texts))


def is_storable(text: str) -> bool:
    """Whether every database takes the text: it has no NUL and no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def contains(column: ColumnElement[str], folded_search: str) -> ColumnElement[bool]:
    """Return the condition that the folded text is part of the column."""
    if len(folded_search) > MAX_PATTERN_CHARACTERS:
        return func.replace(column, folded_search, "") != column
    if _SPECIAL.isdisjoint(folded_search):  # PostgreSQL would apply ESCAPE to the pattern again for each row
        return column.like(f"%{folded_search}%")
    return column.contains(folded_search, autoescape=True)
