"""Recognizes requests that all fail for the same reason, so that a batch need not send every one of them."""

import re
from collections.abc import Hashable
from typing import Final, NamedTuple

from batchline.models.error_codes import BATCH_END_CODES, ErrorCode

MAX_MESSAGE_CHARACTERS: Final = 300
# From the start of a word, without backtracking: long words without a digit would take quadratic time.
_VARIABLE: Final = re.compile(r"(?<![\w.:/-])[^\W\d]*+(?:[.:/-]++[^\W\d]*+)*+\d[\w.:/-]*")
"""A word with a digit in it: a number, or the id of a request, an organization or a deployment."""

_UNCOUNTED: Final = BATCH_END_CODES | {
    ErrorCode.CONTENT_FILTER,
    ErrorCode.CONTEXT_LENGTH_EXCEEDED,
    ErrorCode.TRUNCATED,
    ErrorCode.INVALID_OUTPUT,
}
"""Codes of failures that are the request's own: they say nothing of the next one."""

_HINTS: Final = (
    (re.compile(r"not found, try pulling it first", re.IGNORECASE), "run `ollama pull {model}` on the server"),
    (
        re.compile(r"max_tokens.{0,80}max_completion_tokens", re.IGNORECASE | re.DOTALL),
        "write max_completion_tokens instead of max_tokens in the requests",
    ),
    (
        re.compile(r"unsupported (?:value|parameter).{0,20}?['\"`](?P<name>\w+)['\"`]", re.IGNORECASE | re.DOTALL),
        "leave {name} out of the requests",
    ),
    (
        re.compile(r"model.{0,200}?(?:does not exist|not found)", re.IGNORECASE | re.DOTALL),
        "check the model's name in the requests",
    ),
)
_STATUS_HINTS: Final = {
    401: "check the upstream's api_key",
    403: "check the rights of the upstream's api_key",
    404: "check the upstream's base_url",
    405: "check the upstream's base_url",
    408: "set stream = true on the upstream, so that no proxy waits for the whole answer",
    524: "set stream = true on the upstream, so that no proxy waits for the whole answer",
}


class FailureKind(NamedTuple):
    """The parts of a failure that are equal if two requests fail for the same reason."""

    status: int | None
    code: ErrorCode
    message: str


def failure_kind(status: int | None, code: ErrorCode, message: str | None) -> FailureKind | None:
    """Return the kind of a failure, without ids and numbers; None for one that is the request's own."""
    if code in _UNCOUNTED:
        return None
    return FailureKind(status, code, without_ids(message or ""))


def without_ids(message: str) -> str:
    """Return the start of a message with `#` for ids and numbers, so that messages for one reason are equal."""
    return _VARIABLE.sub("#", message[:MAX_MESSAGE_CHARACTERS])


def hint(status: int | None, message: str | None, model: str | None) -> str | None:
    """Return what to do about a failure, or None if there is nothing to say beyond its message."""
    for pattern, advice in _HINTS:
        if match := pattern.search(message or ""):
            return advice.format(model=model or "MODEL", **match.groupdict())
    return _STATUS_HINTS.get(status or 0)


class FailureStreak:
    """The requests in a row, of one model at one upstream, that failed in the same way.

    Report a request when it is settled, not each of its attempts: a fault that a retry cures is none of these.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kind: FailureKind | None = None
        self._requests: set[Hashable] = set()

    @property
    def length(self) -> int:
        """Return the number of different requests in the streak."""
        return len(self._requests)

    @property
    def is_over(self) -> bool:
        """Return True if the streak is as long as the limit."""
        return len(self._requests) >= self.limit

    def on_success(self) -> None:
        """End the streak."""
        if self._requests:
            self._requests.clear()
            self.kind = None

    def on_failure(self, request: Hashable, kind: FailureKind | None) -> bool:
        """Count the failure of a request; return True if that makes the streak as long as the limit.

        A failure of another kind begins a new streak. One without a kind changes nothing.
        """
        if kind is None:
            return False
        if kind != self.kind:
            self._requests.clear()
            self.kind = kind
        was_over = self.is_over
        self._requests.add(request)
        return self.is_over and not was_over
