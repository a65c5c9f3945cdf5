"""Who comes in to the pages: by a cookie that holds their key, and from nowhere but these pages."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from batchline.api.door import WRONG_KEY, Door, Visitor, parted
from batchline.api.errors import Refusal
from batchline.models.errors import BatchlineError
from batchline.web.errors import error_answer, wants_page
from batchline.web.rendering import secured
from batchline.web.static import STATIC

COOKIE: Final = "batchline_key"
SIGN_IN: Final = "/sign-in"
READING: Final = frozenset({"GET", "HEAD"})


class Gate:
    """Has everybody pass before anything else is looked at, and says what browsers may do with the answers."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request in, refuse it, or ask for a key."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = None if scope["path"].startswith(STATIC) else await self._stopped(Request(scope))
        await (answer or self._app)(scope, receive, secured(send))

    async def _stopped(self, request: Request) -> Response | None:
        """The answer to a request that does not come in."""
        try:
            if request.method not in READING:
                check_comes_from_here(request.headers)
            visitor = await visitor_with(self._door, request.cookies.get(COOKIE, ""), request)
        except (Refusal, BatchlineError) as error:
            return error_answer(request, error)
        request.state.visitor = visitor
        if visitor is not None:
            self._door.seat(visitor)
        if visitor is not None or request.url.path == SIGN_IN:
            return None
        return _asked_to_sign_in(request)


async def visitor_with(door: Door, token: str, request: Request) -> Visitor | None:
    """Whoever has that key, counted as a use of it; none for no key. Raises `Refusal` (403, 429)."""
    found = await door.find(token)
    if found.is_needed and found.key is None:
        return None
    return door.admit(found, request.scope)


def check_comes_from_here(headers: Headers) -> None:
    """Raise `Refusal` for what another page than ours sends, or what does not tell where it is from."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    is_ours = site in {None, "same-origin"} and (origin is None or parted(origin).netloc == headers.get("host"))
    if not is_ours or (site is None and origin is None):
        raise Refusal(
            403,
            "this was not sent from this page, so nothing was done; open the page again and repeat it there. "
            "(Behind a proxy, have it pass on the Host header; programs use the API at /v1.)",
        )


def _asked_to_sign_in(request: Request) -> Response:
    has_cookie = COOKIE in request.cookies
    if not wants_page(request):
        message = WRONG_KEY if has_cookie else "sign in, or send a key to the API at /v1"
        return error_answer(request, Refusal(401, message))
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    place = f"{SIGN_IN}?next={quote(wanted if request.method in READING else '/', safe='/')}"
    answer = RedirectResponse(f"{place}&ended=1" if has_cookie else place, 303)
    if has_cookie:
        answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer
