"""Sessions of the pages: a cookie that holds the key, and protection against cross-site requests."""

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
    """Authenticates each request before anything else reads it, and adds the security headers."""

    def __init__(self, app: ASGIApp, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, refuse it, or redirect to the sign-in page."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # The sign-in page needs its styles before anyone has signed in.
        response = None if scope["path"].startswith(STATIC_PREFIX) else await self._find_rejection(Request(scope))
        await (response or self._app)(scope, receive, with_security_headers(send))

    async def _find_rejection(self, request: Request) -> Response | None:
        """Return the response to a refused request, or None if it may pass."""
        try:
            # Before authentication: a forged request must not use up the member's rate limit.
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
    """Return the caller with that key, None if it is unknown; counts as a use. Raises `ApiError` (403, 429)."""
    lookup = await authenticator.look_up(token)
    if lookup.is_key_required and lookup.key is None:
        return None
    return authenticator.authorize(lookup, request.scope)


def check_same_origin(headers: Headers) -> None:
    """Raise `ApiError` for a request from another site, or without any sign of its origin."""
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
    # A redirect can only repeat a GET.
    location = f"{SIGN_IN_PATH}?next={quote(target if request.method in SAFE_METHODS else '/', safe='/')}"
    response = RedirectResponse(f"{location}&ended=1" if has_cookie else location, 303)
    if has_cookie:
        response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
    return response
