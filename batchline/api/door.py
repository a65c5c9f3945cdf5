"""Who comes in: whoever has a key, or everybody of this machine as long as no key was made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from batchline.api.bounds import PROBES
from batchline.api.errors import Refusal, answer_of, unavailable
from batchline.api.places import SEAT, THREADS, THREADS_A_MEMBER, Places, Seat
from batchline.models.addresses import is_loopback
from batchline.models.errors import BatchlineError
from batchline.operations import Batchline
from batchline.operations.allowance import Allowances
from batchline.operations.keys import Keys, access_of
from batchline.storage.rows import KeyRecord

OPEN_PATHS: Final = PROBES | {"/openapi.json"}
FOR_MANAGERS: Final = frozenset({"/metrics"})
REMEMBERED_S: Final = 1.0
"""How long a key that is revoked may still be taken for valid."""

MOST_REMEMBERED: Final = 10_000
"""Where no key is needed any text may come as one."""

STRANGERS: Final = 2
"""Threads that look up keys which were not valid a moment ago: anyone may send such, as many as they like."""

MOST_STRANGERS: Final = 200
"""Such lookups that wait."""

FORWARDED: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via")
"""Headers that proxies add. A proxy on this machine hands over what comes from others."""

NO_KEY: Final = "You didn't provide an API key: send it in a header, Authorization: Bearer KEY"
WRONG_KEY: Final = "Incorrect API key provided; `batchline keys list` on the server shows which there are"


class Visitor(NamedTuple):
    """Who has been let in: a client on their behalf, and whether they see everybody's."""

    client: Batchline
    is_manager: bool
    name: str | None = None
    """The member's; none where no key is needed."""

    member: str | None = None
    """The member's id; as the name."""


class Found(NamedTuple):
    """What a token is: somebody's key, or nobody's where none is needed."""

    key: KeyRecord | None
    is_needed: bool = True


class Door:
    """Lets in who may come in, and as often as they may; the client that they get sees what they may see."""

    def __init__(self, client: Batchline, *, open_without_keys: bool) -> None:
        self._client = client
        self._keys = Keys(client)
        self._open_without_keys = open_without_keys
        self._allowances = Allowances()
        self._remembered: dict[str, tuple[float, Found]] = {}
        self._looking: dict[str, asyncio.Event] = {}
        self._strangers = CapacityLimiter(STRANGERS)
        self._threads = Places(THREADS, THREADS_A_MEMBER)

    async def find(self, token: str) -> Found:
        """What the token is: as was found a moment ago, or by the records, which one asks for all that wait."""
        if (looking := self._looking.get(token)) is not None:
            await looking.wait()
        at, found = self._remembered.get(token, (float("-inf"), None))
        if found is not None and time.monotonic() - at < REMEMBERED_S:
            return found
        self._looking[token] = looked = asyncio.Event()
        try:
            limiter = None if token in self._remembered else self._strangers
            if limiter is not None and limiter.statistics().tasks_waiting >= MOST_STRANGERS:
                raise unavailable("too many keys are being looked up; try again")
            return await to_thread.run_sync(self._look_up, token, limiter=limiter)
        finally:
            looked.set()
            if self._looking.get(token) is looked:
                del self._looking[token]

    def _look_up(self, token: str) -> Found:
        key = self._keys.of_token(token) if token else None
        found = Found(key, key is not None or not self._open_without_keys or self._keys.are_needed())
        if key is not None or not found.is_needed:
            if len(self._remembered) >= MOST_REMEMBERED:
                self._remembered.clear()
            self._remembered[token] = time.monotonic(), found
        return found

    def admit(self, found: Found, scope: Scope) -> Visitor:
        """The visitor with that token who sends that request; raises `Refusal` (401, 403, 429)."""
        headers, path = Headers(scope=scope), scope["path"]
        if not found.is_needed:
            _check_is_local(headers, http_version=scope["http_version"])
            return Visitor(self._client, is_manager=True)
        key = found.key
        if key is None:
            raise _unknown(has_token=bool(_token(headers)))
        if wait_s := self._allowances.take(key.id, key.requests_per_minute, now=time.monotonic()):
            raise Refusal(
                429,
                f"Rate limit reached: {key.requests_per_minute} requests per minute; try again in {wait_s} s",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(wait_s)},
            )
        if path in FOR_MANAGERS and key.role != "manager":
            raise Refusal(403, f"{path} is for managers", code="insufficient_permissions")
        access = access_of(key)
        return Visitor(self._client.acting_for(access), key.role == "manager", key.name, access.member_id)

    def seat(self, visitor: Visitor) -> None:
        """Have what is done for this request from here on done on the visitor's behalf."""
        SEAT.set(Seat(self._threads, visitor.member))


def _unknown(*, has_token: bool) -> Refusal:
    message, code = (WRONG_KEY, "invalid_api_key") if has_token else (NO_KEY, None)
    return Refusal(401, message, code=code, headers={"WWW-Authenticate": "Bearer"})


class Doorkeeper:
    """Has everybody pass the door before anything else of the request is looked at."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request in, or refuse it."""
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            try:
                visitor = self._door.admit(await self._door.find(_token(Headers(scope=scope))), scope)
            except (Refusal, BatchlineError) as error:
                await answer_of(error)(scope, receive, send)
                return
            scope.setdefault("state", {})["visitor"] = visitor
            self._door.seat(visitor)
        await self._app(scope, receive, send)


def _token(headers: Mapping[str, str]) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _check_is_local(headers: Mapping[str, str], *, http_version: str) -> None:
    """Keep out what comes through a proxy, and web pages of others, which a browser lets send requests to here."""
    sign = next((each for each in FORWARDED if each in headers), None)
    if sign is None and http_version == "1.0":  # as nginx speaks to what is behind it, without any such header
        sign = "HTTP/1.0"
    if sign is not None:
        raise Refusal(
            403,
            f"without keys only programs of this machine are served, and this comes through a proxy ({sign}); "
            "make a key with `batchline keys create`",
        )
    host, origin = headers.get("host", ""), headers.get("origin")
    if not is_loopback(parted(f"//{host}").hostname or ""):
        raise Refusal(403, "without keys only localhost is served; make one with `batchline keys create`")
    if origin is not None and parted(origin).netloc != host:
        raise Refusal(403, "without keys no other web pages are served; make one with `batchline keys create`")


def parted(url: str) -> SplitResult:
    """The URL's parts; nothing in them where it is none."""
    try:
        return urlsplit(url)
    except ValueError:
        return urlsplit("")
