"""The list of models that the API returns."""

from typing import Literal

from pydantic import Field

from batchline.models.base import WireModel
from batchline.models.settings import Settings


class ModelObject(WireModel):
    """A model that an upstream is configured to serve."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Unknown, always 0.")
    owned_by: str = Field(description="The upstream's name.")


class ModelListResponse(WireModel):
    """All models that the upstreams are configured to serve."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


def list_served_models(settings: Settings) -> ModelListResponse:
    """Return the models that the upstreams list; each belongs to the first upstream that lists it."""
    owners = {
        model: upstream.name for upstream in reversed(settings.all_upstreams) for model in upstream.models or ()
    }
    return ModelListResponse(data=[ModelObject(id=model, owned_by=owners[model]) for model in sorted(owners)])


def find_served_model(settings: Settings, model: str) -> ModelObject | None:
    """Return the model if an upstream lists it or serves all models; None otherwise."""
    upstream = settings.upstream_for(model)
    return None if upstream is None else ModelObject(id=model, owned_by=upstream.name)
