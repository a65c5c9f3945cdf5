"""Case-insensitive search in a batch's id, filename and metadata."""

from collections.abc import Mapping
from typing import Final

from sqlalchemy import ColumnElement, func

MAX_PATTERN_CHARACTERS: Final = 10_000
"""Maximum length of a search by LIKE: SQLite rejects patterns of more than 50,000 bytes."""

_SPECIAL: Final = frozenset("%_\\")
"""Special characters of patterns; on PostgreSQL the backslash is one even without ESCAPE."""

SEPARATOR: Final = "\ufdd0"
_REPLACEMENTS: Final = {0: "\ufdd1", 0xFDD0: "\ufffd", 0xFDD1: "\ufffd"}
"""Replacements, by noncharacters, for NUL, which PostgreSQL cannot store, and for the ones that we use."""


def casefolded(text: str) -> str:
    """Return the text as it is stored and compared, without differences in case.

    Each character is folded by itself, so that a substring stays a substring.
    """
    return text.casefold().translate(_REPLACEMENTS)


def search_text(batch_id: str, filename: str, metadata: Mapping[str, str] | None) -> str:
    """Return the folded texts to search, joined by a separator that no search contains."""
    texts = (batch_id, filename, *(text for pair in (metadata or {}).items() for text in pair))
    return SEPARATOR.join(map(casefolded, texts))


def is_storable(text: str) -> bool:
    """Return True if every database can store the text: it has no NUL and no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def contains(column: ColumnElement[str], folded_search: str) -> ColumnElement[bool]:
    """Return the condition that the column contains the folded text."""
    if len(folded_search) > MAX_PATTERN_CHARACTERS:
        return func.replace(column, folded_search, "") != column
    # Without ESCAPE if possible: PostgreSQL would convert the pattern again for each row.
    if _SPECIAL.isdisjoint(folded_search):
        return column.like(f"%{folded_search}%")
    return column.contains(folded_search, autoescape=True)
