"""Forms that Prefect's pages make of our flows' parameters: all described, and valid as they open."""

from typing import Any

import pytest
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

from batchline.flows.deployments import deployments
from batchline.flows.housekeeping import housekeeping
from batchline.flows.process_batch import process_batch
from batchline.flows.sync_source import sync_source
from batchline.models.settings import ENDPOINTS

FLOWS = [process_batch, sync_source, housekeeping]


def schema_of(flow: Any) -> dict[str, Any]:
    return parameter_schema(flow).model_dump_for_openapi()


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_flow_parameters_have_description_and_single_type(flow):
    properties = schema_of(flow)["properties"]

    assert [name for name, about in properties.items() if not about.get("description")] == []
    assert {about.get("type") for about in properties.values()} <= {"string", "boolean", "object", "array"}


@pytest.mark.parametrize("deployment", deployments(), ids=lambda deployment: deployment.name)
def test_deployment_form_defaults_are_valid(deployment):
    schema = deployment._parameter_openapi_schema.model_dump_for_openapi()
    defaults = {name: about.get("default") for name, about in schema["properties"].items()}

    assert validate({**defaults, **deployment.parameters}, schema) == []


def test_endpoint_and_window_parameters_are_choices():
    properties = schema_of(process_batch)["properties"]

    assert properties["endpoint"]["enum"] == list(ENDPOINTS)
    assert properties["completion_window"]["enum"][:2] == ["1h", "3h"]
    for name in ("endpoint", "completion_window"):
        assert properties[name]["default"] in properties[name]["enum"]


def test_metadata_and_upstreams_parameters_have_json_types():
    values = {"metadata": {"team": "a"}, "upstreams": ["a", "b"]}
    wrong = {"metadata": {"team": 1}, "upstreams": "a"}

    assert validate(values, schema_of(process_batch)) == []
    assert len(validate(wrong, schema_of(process_batch))) == 2


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_storage_parameter_accepts_null_and_strips_whitespace(flow):
    taken = flow.validate_parameters({**REQUIRED.get(flow.name, {}), "storage": " team\n"})

    assert taken["storage"] == "team"
    assert flow.validate_parameters({**REQUIRED.get(flow.name, {}), "storage": None})["storage"] is None


REQUIRED = {"sync-source": {"uri": "/jobs/inbox"}}
