"""Who comes in to the pages: by a cookie that holds their key, and from nowhere but these pages."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from batchline.api.auth import INVALID_KEY_MESSAGE, Authenticator, Principal, split_url
from batchline.api.errors import ApiError
from batchline.models.errors import BatchlineError
from batchline.web.errors import accepts_html, render_error
from batchline.web.rendering import with_security_headers
from batchline.web.static_files import STATIC_PREFIX

SESSION_COOKIE: Final = "batchline_key"
SIGN_IN_PATH: Final = "/sign-in"
SAFE_METHODS: Final = frozenset({"GET", "HEAD"})


class SessionMiddleware:
    """Has everybody pass before anything else is looked at, and says what browsers may do with the answers."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the request in, refuse it, or ask for a key."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response = None if scope["path"].startswith(STATIC_PREFIX) else await self._find_rejection(Request(scope))
        await (response or self._app)(scope, receive, with_security_headers(send))

    async def _find_rejection(self, request: Request) -> Response | None:
        """The answer to a request that does not come in."""
        try:
            if request.method not in SAFE_METHODS:
                check_same_origin(request.headers)
            principal = await authenticate(self._authenticator, request.cookies.get(SESSION_COOKIE, ""), request)
        except (ApiError, BatchlineError) as error:
            return render_error(request, error)
        request.state.principal = principal
        if principal is not None:
            self._authenticator.set_request_context(principal)
        if principal is not None or request.url.path == SIGN_IN_PATH:
            return None
        return _redirect_to_sign_in(request)


async def authenticate(authenticator: Authenticator, token: str, request: Request) -> Principal | None:
    """Whoever has that key, counted as a use of it; none for no key. Raises `ApiError` (403, 429)."""
    lookup = await authenticator.look_up(token)
    if lookup.is_key_required and lookup.key is None:
        return None
    return authenticator.authorize(lookup, request.scope)


def check_same_origin(headers: Headers) -> None:
    """Raise `ApiError` for what another page than ours sends, or what does not tell where it is from."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    is_same_origin = site in {None, "same-origin"} and (
        origin is None or split_url(origin).netloc == headers.get("host")
    )
    if not is_same_origin or (site is None and origin is None):
        raise ApiError(
            403,
            "this was not sent from this page, so nothing was done; open the page again and repeat it there. "
            "(Behind a proxy, have it pass on the Host header; programs use the API at /v1.)",
        )


def _redirect_to_sign_in(request: Request) -> Response:
    has_cookie = SESSION_COOKIE in request.cookies
    if not accepts_html(request):
        message = INVALID_KEY_MESSAGE if has_cookie else "sign in, or send a key to the API at /v1"
        return render_error(request, ApiError(401, message))
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    location = f"{SIGN_IN_PATH}?next={quote(target if request.method in SAFE_METHODS else '/', safe='/')}"
    response = RedirectResponse(f"{location}&ended=1" if has_cookie else location, 303)
    if has_cookie:
        response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
    return response
