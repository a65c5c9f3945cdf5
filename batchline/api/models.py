"""`/v1/models`."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response

from batchline.api.answers import Here, written
from batchline.api.errors import documented
from batchline.api.places import FairRoute
from batchline.models.errors import NotFound
from batchline.models.served import ModelListResponse, ModelObject, served_model, served_models

router = APIRouter(prefix="/v1/models", tags=["Models"], route_class=FairRoute)


@router.get("", response_model=ModelListResponse, responses=documented())
def list_models(client: Here) -> Response:
    """List the models that the upstreams are said to serve."""
    return written(served_models(client.engine.settings))


@router.get("/{model:path}", response_model=ModelObject, responses=documented())
def retrieve_model(model: str, client: Here) -> Response:
    """Tell which upstream serves a model."""
    found = served_model(client.engine.settings, model) if model else None
    if found is None:
        raise NotFound(f"no upstream serves the model {model!r}")
    return written(found)
