"""Signing in with a key, and out."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response
from starlette.datastructures import FormData

from batchline.api.door import Door
from batchline.api.places import FairRoute
from batchline.web.asked import sent_form
from batchline.web.gate import COOKIE, SIGN_IN, visitor_with
from batchline.web.rendering import page

router = APIRouter(route_class=FairRoute)


@router.get(SIGN_IN)
def ask_for_key(request: Request) -> Response:
    """Show the form, or go on where the key is known or none is needed."""
    place = _place(request.query_params.get("next", "/"))
    if request.state.visitor is not None:
        return RedirectResponse(place, 303)
    # A browser keeps the cookie back when the way leads here from another site; from this page it sends it.
    is_first_look = request.headers.get("sec-fetch-site") == "cross-site"
    ended = "ended" in request.query_params
    return page(request, "sign_in.html", place=place, is_first_look=is_first_look, ended=ended, problem=None)


@router.post(SIGN_IN)
async def sign_in(request: Request, form: Annotated[FormData, Depends(sent_form)]) -> Response:
    """Keep the key in a cookie for as long as the browser runs."""
    door: Door = request.app.state.door
    token, place = str(form.get("key", "")).strip(), _place(str(form.get("next", "/")))
    visitor = await visitor_with(door, token, request)
    if visitor is None:
        problem = "No key is that one, or it was revoked." if token else "Type a key."
        return page(
            request, "sign_in.html", status=401, place=place, is_first_look=False, ended=False, problem=problem
        )
    answer = RedirectResponse(place, 303)
    answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=_is_by_https(request))
    return answer


@router.post("/sign-out")
def sign_out() -> Response:
    """Forget the key."""
    answer = RedirectResponse(SIGN_IN, 303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


def _is_by_https(request: Request) -> bool:
    """As the browser sees it, which may be through a proxy."""
    return "https" in {request.url.scheme, urlsplit(request.headers.get("origin", "")).scheme}


def _place(asked: str) -> str:
    """A page of ours to go on to: what could lead elsewhere is not followed."""
    is_ours = asked.startswith("/") and not asked.startswith(("//", "/\\", SIGN_IN)) and asked.isprintable()
    return asked if is_ours else "/"
