"""Routes that are asked often."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import lru_cache
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import request_response

REMEMBERED: Final = 1_000
REMEMBERED_BYTES: Final = 512
"""So many queries, none longer than that, are not checked again: who polls asks for the same."""

Function = Callable[..., Coroutine[Any, Any, Response]]


class QuickRoute(APIRoute):
    """A route that is described as any other, whose function is called without FastAPI's way of finding arguments.

    That way takes as long as all the rest of a request. The function is a coroutine that takes `request`, the
    parameters of the path as texts, and the model `query`.
    """

    def __init__(self, path: str, endpoint: Function, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = request_response(self.get_route_handler())

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What is called with each request."""
        function: Function = self.endpoint
        (parameter,) = self.dependant.query_params
        model: type[BaseModel] = parameter.field_info.annotation  # type: ignore[assignment]
        nothing_asked = model()

        async def handle(request: Request) -> Response:
            asked: bytes = request.scope["query_string"]
            check = _remembered if len(asked) <= REMEMBERED_BYTES else _checked
            query = check(model, asked) if asked else nothing_asked
            return await function(request=request, query=query, **request.path_params)

        return handle


def _checked(model: type[BaseModel], asked: bytes) -> BaseModel:
    """The query, which nobody can change; raises as FastAPI does for one that cannot be."""
    try:
        return model.model_validate(dict(QueryParams(asked)))
    except ValidationError as error:
        faults = [{**fault, "loc": ("query", *fault["loc"])} for fault in error.errors(include_url=False)]
        raise RequestValidationError(faults) from None


_remembered = lru_cache(maxsize=REMEMBERED)(_checked)
