"""Counts the messages of failed requests by error code, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from batchline.models.analytics import FailureMessage
from batchline.models.error_codes import BATCH_END_CODES
from batchline.models.failure_streak import MAX_MESSAGE_CHARACTERS, without_ids

MAX_KINDS: Final = 1_000
"""Different messages that are counted at a time, of all codes; more are told apart only if they are frequent."""

KEPT_PER_CODE: Final = 10
"""Messages of a code that a part's counts keep."""

StoredMessages = dict[str, list[tuple[str, int]]]
"""From error codes to their most frequent messages with counts, as parts store them."""


class MessageCounts:
    """Counts of messages by error code; messages that differ only in ids and numbers count as one.

    After more than `MAX_KINDS` different messages, counts are lower bounds (the algorithm is that of Misra and
    Gries): each is too low by at most the number of messages divided by `MAX_KINDS`.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], int] = {}
        self._examples: dict[tuple[str, str], str] = {}
        self._last: tuple[str, tuple[str, str]] = ("", ("", ""))

    def add(self, code: str, message: str, count: int = 1) -> None:
        """Count a message; one that is empty, or only says that the batch had ended, is ignored."""
        if not message or code in BATCH_END_CODES:
            return
        # Most failures repeat the message before, which then need not be searched for ids.
        last_message, kind = self._last
        if message != last_message or kind[0] != code:
            kind = code, without_ids(message)
            self._last = message, kind
        if kind in self._counts:
            self._counts[kind] += count
        elif len(self._counts) < MAX_KINDS:
            self._counts[kind] = count
            self._examples[kind] = message[:MAX_MESSAGE_CHARACTERS]
        else:
            self._make_room(kind, message, count)

    def _make_room(self, kind: tuple[str, str], message: str, count: int) -> None:
        """Lower all counts by that of the new message or by the lowest, and drop those that are 0."""
        lowest = min(count, *self._counts.values())
        self._counts = {known: number - lowest for known, number in self._counts.items() if number > lowest}
        self._examples = {known: self._examples[known] for known in self._counts}
        if count > lowest:
            self._counts[kind] = count - lowest
            self._examples[kind] = message[:MAX_MESSAGE_CHARACTERS]

    def add_stored(self, stored: Mapping[str, Iterable[tuple[str, int]]]) -> None:
        """Add the counts of a part."""
        for code, messages in stored.items():
            for message, count in messages:
                self.add(code, message, count)

    def to_stored(self) -> StoredMessages:
        """Return the most frequent messages of each code, for a part."""
        stored: StoredMessages = {}
        for kind, count in sorted(self._counts.items(), key=lambda item: -item[1]):
            messages = stored.setdefault(str(kind[0]), [])
            if len(messages) < KEPT_PER_CODE:
                messages.append((self._examples[kind], count))
        return stored

    def most_frequent(self) -> dict[str, FailureMessage]:
        """Return the most frequent message of each code."""
        return {
            code: FailureMessage(message=messages[0][0], count=messages[0][1])
            for code, messages in self.to_stored().items()
        }
