"""Sign in with a key, and sign out."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import FormData

from batchline.api.auth import Authenticator
from batchline.api.concurrency import FairRoute
from batchline.web.dependencies import read_form
from batchline.web.rendering import render_page
from batchline.web.session import SESSION_COOKIE, SIGN_IN_PATH, authenticate

router = APIRouter(route_class=FairRoute)


@router.get(SIGN_IN_PATH)
def ask_for_key(request: Request) -> Response:
    """Show the form, or redirect if the session is valid or no key is needed."""
    target = _safe_target(request.query_params.get("next", "/"))
    if request.state.principal is not None:
        return RedirectResponse(target, 303)
    # On the way from another site browsers withhold a `strict` cookie; from this page they send it.
    is_cross_site = request.headers.get("sec-fetch-site") == "cross-site"
    is_ended = "ended" in request.query_params
    return render_page(
        request, "sign_in.html", place=target, is_first_look=is_cross_site, ended=is_ended, problem=None
    )


@router.post(SIGN_IN_PATH)
async def sign_in(request: Request, form: Annotated[FormData, Depends(read_form)]) -> Response:
    """Store the key in a session cookie."""
    authenticator: Authenticator = request.app.state.authenticator
    token, target = str(form.get("key", "")).strip(), _safe_target(str(form.get("next", "/")))
    principal = await authenticate(authenticator, token, request)
    if principal is None:
        problem = "This key is unknown or was revoked." if token else "Enter a key."
        return render_page(
            request, "sign_in.html", status=401, place=target, is_first_look=False, ended=False, problem=problem
        )
    response = RedirectResponse(target, 303)
    # A browser may use HTTPS to a proxy that speaks HTTP to this server.
    is_https = "https" in {request.url.scheme, urlsplit(request.headers.get("origin", "")).scheme}
    response.set_cookie(SESSION_COOKIE, token, httponly=True, samesite="strict", secure=is_https)
    return response


@router.post("/sign-out")
def sign_out() -> Response:
    """Delete the cookie."""
    response = RedirectResponse(SIGN_IN_PATH, 303)
    response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict")
    return response


def _safe_target(path: str) -> str:
    """Return the path if it leads to a page of this server, else `/`."""
    # Browsers read `//host` and `/\host` as addresses of another server.
    is_local = path.startswith("/") and not path.startswith(("//", "/\\", SIGN_IN_PATH)) and path.isprintable()
    return path if is_local else "/"
