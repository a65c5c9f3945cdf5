"""Equal errors of many lines as one, for people who read them."""

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from batchline.models.batches import BatchError

MOST_GROUPS: Final = 100
MOST_RANGES: Final = 8
_VARYING: Final = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+(?:,\d+)*")
"""Parts of a message that differ from line to line: what is quoted, and numbers."""


class ErrorGroup(NamedTuple):
    """An error with all lines that have it; `message` is that of the first."""

    code: str | None
    message: str
    lines: tuple[int, ...]


def grouped(errors: Iterable[BatchError], *, most: int = MOST_GROUPS) -> list[ErrorGroup]:
    """Return the errors with equal ones together, by first line.

    If more than `most` would be left, those that differ only in numbers and quoted words are put together too.
    """
    errors = list(errors)
    groups = _together(errors, {error.message: error.message for error in errors})
    if len(groups) <= most:
        return groups
    return _together(errors, {error.message: _VARYING.sub("", error.message) for error in errors})


def _together(errors: Iterable[BatchError], keys: dict[str, str]) -> list[ErrorGroup]:
    """Group the errors by code, parameter and the key of their message."""
    found: dict[tuple[str | None, ...], list[BatchError]] = {}
    for error in errors:
        found.setdefault((error.code, error.param, keys[error.message]), []).append(error)
    return [_group(some) for some in found.values()]


def _group(errors: Sequence[BatchError]) -> ErrorGroup:
    first = errors[0]
    varies = any(error.message != first.message for error in errors)
    message = f"the first: {first.message}" if varies else first.message
    return ErrorGroup(first.code, message, tuple(error.line for error in errors if error.line is not None))


def places_of(lines: Sequence[int]) -> str:
    """Return the lines in words, neighbours as a range, shortened if there are many ranges."""
    ranges: list[list[int]] = []
    for line in lines:
        if ranges and line == ranges[-1][1] + 1:
            ranges[-1][1] = line
        elif not ranges or line != ranges[-1][1]:
            ranges.append([line, line])
    words = [f"{first:,}" if first == last else f"{first:,}–{last:,}" for first, last in ranges]  # noqa: RUF001
    if len(words) > MOST_RANGES:
        return f"lines {', '.join(words[:MOST_RANGES])} … ({len(lines):,} lines)"
    return f"{'line' if len(lines) == 1 else 'lines'} {', '.join(words)}"
