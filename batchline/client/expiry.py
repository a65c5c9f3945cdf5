"""Parse the lifetime of a file as OpenAI's API writes it."""

from collections.abc import Mapping
from typing import Literal, TypedDict

from batchline.models.errors import InvalidInput


class ExpiresAfterDict(TypedDict):
    """A lifetime in seconds from the file's creation; the anchor is always `created_at`."""

    anchor: Literal["created_at"]
    seconds: int


ExpiresAfter = int | ExpiresAfterDict
"""Seconds, or the mapping that OpenAI's clients send."""


def parse_lifetime_s(expires_after: ExpiresAfter | None) -> int | None:
    """Return the seconds, None if not given; raises `InvalidInput` unless they are a positive integer."""
    value = expires_after
    if isinstance(value, Mapping):
        if value.get("anchor", "created_at") != "created_at":
            raise InvalidInput(
                f"expires_after has the anchor {value['anchor']!r}; write 'created_at'", param="anchor"
            )
        value = value.get("seconds")
    if value is None and expires_after is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInput(f"expires_after is {expires_after!r}; give seconds, at least 1", param="expires_after")
    return value
