"""The seam between the caller and an HTTP library: send one request, get a reply or a classified failure."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from math import inf
from typing import Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from batchline.models.failures import ErrorCode
from batchline.models.upstreams import Upstream, dialect_of

SECRET_CHARACTERS = 8


class Reply(msgspec.Struct, frozen=True, gc=False):
    """A whole HTTP answer; `ttfb_s` counts from the start of the sending to the first byte of the body."""

    status_code: int
    body: bytes
    ttfb_s: float
    request_id: str | None = None
    retry_after: str | None = None
    retry_after_ms: str | None = None


class TransportFailure(Exception):
    """No whole answer came.

    `sent` is false where the server cannot have seen the request, `begun` is true where it had begun to answer.
    """

    def __init__(self, code: ErrorCode, message: str, *, sent: bool, begun: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.sent = sent
        self.begun = begun


class TooLate(TransportFailure):
    """The request was not sent: while it waited for a connection, the time until which it may be sent ran out."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.CONNECTION_ERROR, "the time to send it ran out", sent=False)


class Transport(Protocol):
    """Sends requests to one upstream."""

    async def send(self, path: str, body: bytes, *, valid_until: float = inf) -> Reply:
        """POST that JSON body to the path; raises `TransportFailure` where no whole answer comes.

        The caller sees to `valid_until` (monotonic seconds); a transport that waits for a connection first looks
        again, and raises `TooLate`.
        """

    async def aclose(self) -> None:
        """Close the connections."""


TransportFactory = Callable[[Upstream], Transport]


def headers_for(upstream: Upstream, path: str) -> dict[str, str]:
    """The headers of every request to that path: the key in its dialect's place, and the upstream's own."""
    headers = {"content-type": "application/json", "accept": "application/json", "user-agent": user_agent()}
    key = upstream.api_key.get_secret_value() if upstream.api_key else None
    if dialect_of(path) == "anthropic":
        headers["anthropic-version"] = "2023-06-01"
        if key:
            headers["x-api-key"] = key
    elif key:
        headers["authorization"] = f"Bearer {key}"
    own = {name.lower(): value.get_secret_value() for name, value in upstream.headers.items()}
    return headers | own


def secrets_of(upstream: Upstream) -> tuple[bytes, ...]:
    """What must not be written anywhere of what the upstream sends back; too short a text is no secret."""
    values = [header.get_secret_value() for header in upstream.headers.values()]
    if upstream.api_key is not None:
        values.append(upstream.api_key.get_secret_value())
    return tuple(value.encode() for value in values if len(value) >= SECRET_CHARACTERS)


def user_agent() -> str:
    """How batchline names itself to servers."""
    try:
        return f"batchline/{version('batchline')}"
    except PackageNotFoundError:
        return "batchline"


def proxy_for(upstream: Upstream) -> str | None:
    """Return the proxy that the environment names for the upstream, or None if there is none."""
    parts, proxies = urlsplit(upstream.base_url), getproxies()
    if proxy_bypass(parts.hostname or ""):
        return None
    return proxies.get(parts.scheme) or proxies.get("all") or None


def too_long(upstream: Upstream) -> TransportFailure:
    """The failure of an answer that is longer than the upstream's settings allow."""
    return TransportFailure(
        ErrorCode.INVALID_RESPONSE, f"the answer is longer than {upstream.max_response_bytes} bytes", sent=True
    )
