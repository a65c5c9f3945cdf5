"""Models that can be asked for, as the API shows them."""

from typing import Literal

from pydantic import Field

from batchline.models.base import WireModel
from batchline.models.settings import Settings


class ModelObject(WireModel):
    """A model that an upstream is said to serve."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(default=0, description="Not known.")
    owned_by: str = Field(description="The upstream's name.")


class ModelListResponse(WireModel):
    """All models that the upstreams are said to serve."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


def list_served_models(settings: Settings) -> ModelListResponse:
    """The models that the upstreams list, each as the first's that has it."""
    owners = {
        model: upstream.name for upstream in reversed(settings.all_upstreams) for model in upstream.models or ()
    }
    return ModelListResponse(data=[ModelObject(id=model, owned_by=owners[model]) for model in sorted(owners)])


def find_served_model(settings: Settings, model: str) -> ModelObject | None:
    """The model, if an upstream lists it, or serves whatever it is asked for."""
    upstream = settings.upstream_for(model)
    return None if upstream is None else ModelObject(id=model, owned_by=upstream.name)
