"""Finding a text in what a batch is known by, whatever the case: how that is kept, and how it is asked for."""

import re
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Integer, Select, Subquery, Text, column, func, select, table
from sqlalchemy import text as sql

from batchline.storage.schema import listed_batches

FEW: Final = 10_000
"""So many batches SQLite takes from its trigram index and sorts; of more, it walks the list and looks at each."""

ASKED: Final = 32
"""So many letters of a text SQLite's trigram index is asked for; the rest is compared."""

LONGEST_PATTERN: Final = 1_000
"""So many letters of a text go into a pattern on SQLite, which refuses patterns of 50,000 bytes."""

SEPARATOR: Final = "\ufdd0"
_KEPT_AS: Final = {0: "\ufdd1", 0xFDD0: "\ufffd", 0xFDD1: "\ufffd"}
"""What stands for NUL, which PostgreSQL does not hold, and for the separator and that: they are no characters."""

_LAST: Final = "\U0010ffff" * 2

# SQLite's full-text index over trigrams, and the list of what is in it
_trigrams = table("listed_batches_trigrams", column("rowid", Integer), column("listed_batches_trigrams", Text))
_terms = table("listed_batches_terms", column("term", Text), column("doc", Integer))


def folded(text: str) -> str:
    """The text as it is kept and compared: two texts that differ in case only are the same.

    Each character is folded by itself, so that a part of a text is folded to a part of it.
    """
    return text.casefold().translate(_KEPT_AS)


def search_text(batch_id: str, filename: str, metadata: Mapping[str, str] | None) -> str:
    """All that a search looks into, folded, with no search reaching from one text into the next."""
    texts = (batch_id, filename, *(text for pair in (metadata or {}).items() for text in pair))
    # Two at the end, so that a trigram begins with each letter of the last text as well.
    return SEPARATOR.join((*map(folded, texts), "", ""))


def is_storable(text: str) -> bool:
    """Whether every database takes the text: it has no NUL and no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def few_candidates(connection: Connection, wanted: str) -> Subquery | None:
    """On SQLite: the listed batches that may have the folded text, where they are `FEW` at most; else None."""
    hits = _hits(wanted)
    found = connection.execute(select(func.count()).select_from(hits.limit(FEW + 1).subquery())).scalar_one()
    if found > FEW:
        return None
    # The limit, which cuts nothing off, keeps the conditions outside, so that no other index is chosen for them.
    return select(listed_batches).where(listed_batches.c.number.in_(hits)).limit(FEW).subquery("few")


def _hits(wanted: str) -> Select[Any]:
    if len(wanted) < 3:
        return select(_terms.c.doc).where(_terms.c.term.between(wanted, wanted + _LAST))
    trigrams = dict.fromkeys(wanted[start : start + 3] for start in range(min(len(wanted), ASKED) - 2))
    query = " AND ".join('"' + trigram.replace('"', '""') + '"' for trigram in trigrams)
    return select(_trigrams.c.rowid).where(_trigrams.c.listed_batches_trigrams.match(query))


def contains(connection: Connection, looked_into: ColumnElement[str], wanted: str) -> ColumnElement[bool]:
    """Whether the folded text is part of the column."""
    if connection.dialect.name == "postgresql":  # whose index over trigrams serves LIKE
        return looked_into.like("%" + re.sub(r"([\\%_])", r"\\\1", wanted) + "%")
    if len(wanted) > LONGEST_PATTERN:
        return func.instr(looked_into, wanted) > 0
    # Which takes two thirds of the time that `instr` takes: it leaps from first letter to first letter.
    return looked_into.bool_op("GLOB")("*" + re.sub(r"([*?[])", r"[\1]", wanted) + "*")


def plan_each_search(connection: Connection) -> None:
    """On PostgreSQL: let the rest of the transaction's statements be planned for the very text that is wanted."""
    connection.execute(sql("SET LOCAL plan_cache_mode = force_custom_plan"))
