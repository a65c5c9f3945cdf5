"""Interface of a transport: it sends one request and returns a reply or raises a classified failure."""

from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from math import inf
from typing import Final, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import msgspec

from batchline.models.error_codes import ErrorCode
from batchline.models.retry_after import HEADER_PREFIXES
from batchline.models.upstreams import Upstream, dialect_of

KEPT_HEADERS: Final = (*HEADER_PREFIXES, "location")
"""Starts of the names, in lower case, of headers that are kept of a reply that is not a 2xx."""

MIN_SECRET_CHARACTERS = 8
"""Shorter values are not redacted: they would match ordinary text."""


class HttpReply(msgspec.Struct, frozen=True, gc=False):
    """A complete HTTP reply; `ttfb_s` is the time from the start of sending to the first byte of the body.

    `headers` is empty for a 2xx. For other replies it has each header of `KEPT_HEADERS`, as often as it came, with
    its name in lower case.
    """

    status_code: int
    body: bytes
    ttfb_s: float
    request_id: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


class TransportFailure(Exception):
    """Raised if no complete reply came.

    `sent` is False if the server cannot have seen the request; `response_started` is True if it began to answer. A
    failure with the code `INVALID_RESPONSE` is deterministic: the same request gets the same reply.
    """

    def __init__(self, code: ErrorCode, message: str, *, sent: bool, response_started: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.sent = sent
        self.response_started = response_started

    @property
    def closed_before_reply(self) -> bool:
        """Return True if the connection broke before a byte of the reply came."""
        return self.code is ErrorCode.CONNECTION_ERROR and not self.response_started


class DeadlinePassed(TransportFailure):
    """Raised if `valid_until` passed while the request waited for a connection; it was not sent."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.CONNECTION_ERROR, "the time allowed for sending is over", sent=False)


class Transport(Protocol):
    """Sends requests to one upstream."""

    async def send(self, path: str, body: bytes, *, valid_until: float = inf) -> HttpReply:
        """POST the JSON body to the path; raises `TransportFailure` if no complete reply comes.

        The caller checks `valid_until` (monotonic seconds). A transport that first waits for a connection checks
        it again, and raises `DeadlinePassed`.
        """

    async def aclose(self) -> None:
        """Close the connections."""


TransportFactory = Callable[[Upstream], Transport]


def build_headers(upstream: Upstream, path: str) -> dict[str, str]:
    """Return the headers of requests to that path; configured headers replace ours."""
    headers = {"content-type": "application/json", "accept": "application/json", "user-agent": user_agent()}
    api_key = upstream.api_key.get_secret_value() if upstream.api_key else None
    if dialect_of(path) == "anthropic":
        headers["anthropic-version"] = "2023-06-01"
        if api_key:
            headers["x-api-key"] = api_key
    elif api_key:
        headers["authorization"] = f"Bearer {api_key}"
    own_headers = {name.lower(): value.get_secret_value() for name, value in upstream.headers.items()}
    return headers | own_headers


def secrets_to_redact(upstream: Upstream) -> tuple[bytes, ...]:
    """Return the values to redact from replies: the API key and the values of configured headers."""
    secrets = [header.get_secret_value() for header in upstream.headers.values()]
    if upstream.api_key is not None:
        secrets.append(upstream.api_key.get_secret_value())
    return tuple(secret.encode() for secret in secrets if len(secret) >= MIN_SECRET_CHARACTERS)


def keep_headers(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return those headers that are kept of a reply that is not a 2xx."""
    lower = ((name.lower(), value) for name, value in headers)
    return tuple((name, value) for name, value in lower if name.startswith(KEPT_HEADERS))


def user_agent() -> str:
    """Return the User-Agent header."""
    try:
        return f"batchline/{version('batchline')}"
    except PackageNotFoundError:
        return "batchline"


def find_proxy(upstream: Upstream) -> str | None:
    """Return the proxy that the environment names for the upstream, or None if there is none."""
    base_url, proxies = urlsplit(upstream.base_url), getproxies()
    if proxy_bypass(base_url.hostname or ""):
        return None
    return proxies.get(base_url.scheme) or proxies.get("all") or None


def broken_rule(rule: str) -> str:
    """Return the message for a reply that no parser accepts."""
    return f"the connection broke: the answer breaks a rule of HTTP: {rule}"


def response_too_long(upstream: Upstream) -> TransportFailure:
    """Return the failure for a reply that is longer than `max_response_bytes`."""
    return TransportFailure(
        ErrorCode.INVALID_RESPONSE,
        f"the answer is longer than {upstream.max_response_bytes} bytes (max_response_bytes)",
        sent=True,
        response_started=True,
    )
