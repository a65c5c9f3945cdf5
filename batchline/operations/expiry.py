"""How long a file is kept, as OpenAI's API writes it."""

from collections.abc import Mapping
from typing import Literal, TypedDict

from batchline.models.errors import InvalidInput


class Expiry(TypedDict):
    """So many seconds after the file is made; the anchor is always `created_at`."""

    anchor: Literal["created_at"]
    seconds: int


ExpiresAfter = int | Expiry
"""Seconds, or the mapping that OpenAI's clients send."""


def seconds_of(expires_after: ExpiresAfter | None) -> int | None:
    """Its seconds; raises `InvalidInput` for what is neither a positive number nor such a mapping."""
    found = expires_after
    if isinstance(found, Mapping):
        if found.get("anchor", "created_at") != "created_at":
            raise InvalidInput(
                f"expires_after has the anchor {found['anchor']!r}; write 'created_at'", param="anchor"
            )
        found = found.get("seconds")
    if found is None and expires_after is None:
        return None
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise InvalidInput(f"expires_after is {expires_after!r}; give seconds, at least 1", param="expires_after")
    return found
