"""Routes below `/v1/models`."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from batchline.api.concurrency import FairRoute
from batchline.api.errors import openapi_errors
from batchline.api.responses import CurrentClient, model_response
from batchline.models.errors import NotFound
from batchline.models.model_list import ModelListResponse, ModelObject, find_served_model, list_served_models

router = APIRouter(prefix="/v1/models", tags=["Models"], route_class=FairRoute)


@router.get("", response_model=ModelListResponse, responses=openapi_errors())
def list_models(client: CurrentClient) -> Response:
    """List the models that the upstreams are configured to serve."""
    return model_response(list_served_models(client.settings))


@router.get("/{model:path}", response_model=ModelObject, responses=openapi_errors())
def retrieve_model(model: str, client: CurrentClient) -> Response:
    """Return the upstream that serves a model."""
    model_object = find_served_model(client.settings, model) if model else None
    if model_object is None:
        raise NotFound(f"no upstream serves the model {model!r}")
    return model_response(model_object)
