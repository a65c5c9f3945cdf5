"""Group equal errors of many lines for display."""

import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from batchline.models.batches import BatchError

MAX_GROUPS: Final = 100
MAX_RANGES: Final = 8
_VARIABLE_PART: Final = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|\d+(?:,\d+)*")
"""Parts of a message that differ from line to line: quoted text and numbers."""


class ErrorGroup(NamedTuple):
    """An error with all lines that have it; `message` is that of the first."""

    code: str | None
    message: str
    lines: tuple[int, ...]


def group_errors(errors: Iterable[BatchError], *, max_groups: int = MAX_GROUPS) -> list[ErrorGroup]:
    """Return the errors with equal ones grouped, by first line.

    If there would be more than `max_groups`, errors that differ only in numbers and quoted text are grouped too.
    """
    errors = list(errors)
    groups = _group_by_key(errors, {error.message: error.message for error in errors})
    if len(groups) <= max_groups:
        return groups
    return _group_by_key(errors, {error.message: _VARIABLE_PART.sub("", error.message) for error in errors})


def _group_by_key(errors: Iterable[BatchError], keys: dict[str, str]) -> list[ErrorGroup]:
    """Group the errors by code, parameter and the key of their message."""
    members: dict[tuple[str | None, ...], list[BatchError]] = {}
    for error in errors:
        members.setdefault((error.code, error.param, keys[error.message]), []).append(error)
    groups = []
    for first, *others in members.values():
        has_variants = any(error.message != first.message for error in others)
        message = f"the first: {first.message}" if has_variants else first.message
        lines = tuple(error.line for error in (first, *others) if error.line is not None)
        groups.append(ErrorGroup(first.code, message, lines))
    return groups


def describe_lines(lines: Sequence[int]) -> str:
    """Return the lines in words, neighbours as a range, shortened if there are many ranges."""
    ranges: list[list[int]] = []
    for line in lines:
        if ranges and line == ranges[-1][1] + 1:
            ranges[-1][1] = line
        elif not ranges or line != ranges[-1][1]:
            ranges.append([line, line])
    range_texts = [f"{first:,}" if first == last else f"{first:,}–{last:,}" for first, last in ranges]  # noqa: RUF001
    if len(range_texts) > MAX_RANGES:
        return f"lines {', '.join(range_texts[:MAX_RANGES])} … ({len(lines):,} lines)"
    return f"{'line' if len(lines) == 1 else 'lines'} {', '.join(range_texts)}"
