"""Authentication by API key, or for any local program as long as no key exists."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from batchline.api.concurrency import (
    REQUEST_CONTEXT,
    REQUEST_THREADS,
    THREADS_PER_MEMBER,
    FairLimiter,
    RequestContext,
)
from batchline.api.errors import ApiError, error_response, service_unavailable
from batchline.api.request_limits import PROBE_PATHS
from batchline.client import Batchline, KeyRecord
from batchline.client.api_keys import ApiKeys, access_of
from batchline.client.key_rate_limit import KeyRateLimiter
from batchline.models.addresses import is_loopback
from batchline.models.errors import BatchlineError

OPEN_PATHS: Final = PROBE_PATHS | {"/openapi.json"}
MANAGER_PATHS: Final = frozenset({"/metrics"})
CACHE_TTL_S: Final = 1.0
"""Seconds that a revoked key may still be accepted."""

MAX_CACHED_TOKENS: Final = 10_000
"""Maximum of cached tokens; if no key is required, clients may send arbitrary ones."""

UNKNOWN_KEY_THREADS: Final = 2
"""Threads that look up keys not known to be valid: anyone may send those, without limit."""

MAX_UNKNOWN_KEY_LOOKUPS: Final = 200
"""Maximum of such lookups in the queue."""

PROXY_HEADERS: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
"""Headers that proxies add. A proxy on this machine forwards requests from elsewhere."""

MISSING_KEY_MESSAGE: Final = "You didn't provide an API key: send it in a header, Authorization: Bearer KEY"
INVALID_KEY_MESSAGE: Final = "Incorrect API key provided; `batchline keys list` on the server lists the keys"


class Principal(NamedTuple):
    """An authenticated caller: a client with its rights, and its role."""

    client: Batchline
    is_manager: bool
    name: str | None = None
    """The member's name; None if no key is required."""


class TokenLookup(NamedTuple):
    """The key that a token belongs to, or None."""

    key: KeyRecord | None
    is_key_required: bool = True


class Authenticator:
    """Authenticates requests, enforces rate limits, and provides clients restricted to the caller's rights."""

    def __init__(self, client: Batchline, *, allow_anonymous: bool) -> None:
        self._client = client
        self._keys = ApiKeys(client)
        self._allow_anonymous = allow_anonymous
        self._rate_limiter = KeyRateLimiter()
        self._cache: dict[str, tuple[float, TokenLookup]] = {}
        self._pending_lookups: dict[str, asyncio.Event] = {}
        self._unknown_key_limiter = CapacityLimiter(UNKNOWN_KEY_THREADS)
        self._thread_limiter = FairLimiter(REQUEST_THREADS, THREADS_PER_MEMBER)

    async def look_up(self, token: str) -> TokenLookup:
        """Look up a token in the cache or the database; concurrent lookups of one token share one query."""
        if (pending := self._pending_lookups.get(token)) is not None:
            await pending.wait()
        cached_at, cached = self._cache.get(token, (float("-inf"), None))
        if cached is not None and time.monotonic() - cached_at < CACHE_TTL_S:
            return cached
        self._pending_lookups[token] = finished = asyncio.Event()
        try:
            # A flood of invalid keys must not occupy the threads that valid ones need.
            limiter = None if token in self._cache else self._unknown_key_limiter
            if limiter is not None and limiter.statistics().tasks_waiting >= MAX_UNKNOWN_KEY_LOOKUPS:
                raise service_unavailable("too many keys are being looked up; try again")
            return await to_thread.run_sync(self._query_records, token, limiter=limiter)
        finally:
            finished.set()
            # A waiter may have registered a lookup of its own meanwhile.
            if self._pending_lookups.get(token) is finished:
                del self._pending_lookups[token]

    def _query_records(self, token: str) -> TokenLookup:
        key = self._keys.find_by_token(token) if token else None
        lookup = TokenLookup(key, key is not None or not self._allow_anonymous or self._keys.is_key_required())
        if key is not None or not lookup.is_key_required:
            if len(self._cache) >= MAX_CACHED_TOKENS:
                self._cache.clear()  # valid keys are looked up again within a second anyway
            self._cache[token] = time.monotonic(), lookup
        return lookup

    def authorize(self, lookup: TokenLookup, scope: Scope) -> Principal:
        """Return the caller with that token; raises `ApiError` (401, 403, 429)."""
        headers, path = Headers(scope=scope), scope["path"]
        if not lookup.is_key_required:
            _require_local(headers, http_version=scope["http_version"])
            return Principal(self._client, is_manager=True)
        key = lookup.key
        if key is None:
            has_token = bool(_bearer_token(headers))
            message, code = (INVALID_KEY_MESSAGE, "invalid_api_key") if has_token else (MISSING_KEY_MESSAGE, None)
            raise ApiError(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})
        if wait_s := self._rate_limiter.acquire(key.id, key.requests_per_minute, now=time.monotonic()):
            raise ApiError(
                429,
                f"Rate limit reached: {key.requests_per_minute} requests per minute; try again in {wait_s} s",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(wait_s)},
            )
        if path in MANAGER_PATHS and key.role != "manager":
            raise ApiError(403, f"{path} is for managers", code="insufficient_permissions")
        access = access_of(key)
        return Principal(self._client.derive(access=access), key.role == "manager", key.name)

    def set_request_context(self, principal: Principal) -> None:
        """Count the threads that this request uses from now on against the caller's share."""
        REQUEST_CONTEXT.set(RequestContext(self._thread_limiter, principal.client.access.member_id))


class AuthMiddleware:
    """Authenticates each request before anything else reads it."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                principal = self._authenticator.authorize(
                    await self._authenticator.look_up(_bearer_token(Headers(scope=scope))), scope
                )
            except (ApiError, BatchlineError) as error:
                await error_response(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["principal"] = principal  # becomes `request.state.principal`
            self._authenticator.set_request_context(principal)
        await self._app(scope, receive, send)


def _bearer_token(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _require_local(headers: Mapping[str, str], *, http_version: str) -> None:
    """Refuse proxied requests, and those that a browser sends on behalf of other web sites."""
    proxy_sign = next((header for header in PROXY_HEADERS if header in headers), None)
    if proxy_sign is None and http_version == "1.0":  # nginx's default towards upstreams, with no such header
        proxy_sign = "HTTP/1.0"
    if proxy_sign is not None:
        raise ApiError(
            403,
            "without keys only programs of this machine are served, and this request comes through a proxy "
            f"({proxy_sign}); create a key with `batchline keys create`",
        )
    host, origin = headers.get("host", ""), headers.get("origin")
    # DNS rebinding: a foreign name that resolves to 127.0.0.1 sends its own Host header.
    if not is_loopback(split_url(f"//{host}").hostname or ""):
        raise ApiError(403, "without keys only localhost is served; create one with `batchline keys create`")
    if origin is not None and split_url(origin).netloc != host:
        raise ApiError(403, "without keys no other web pages are served; create one with `batchline keys create`")


def split_url(url: str) -> SplitResult:
    """Return the URL's parts; all empty if it is invalid."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
