"""What people fill in: each parameter with its words, choices as choices, pairs as lines."""

import pytest
from prefect.utilities.callables import parameter_schema

from batchline.flows.housekeeping import housekeeping
from batchline.flows.process_batch import process_batch
from batchline.flows.sync_source import sync_source
from batchline.models.errors import InvalidInput
from batchline.models.settings import ENDPOINTS
from batchline.orchestration.forms import pairs_of

FLOWS = [process_batch, sync_source, housekeeping]


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_every_parameter_is_described_and_has_one_plain_kind(flow):
    properties = parameter_schema(flow).model_dump()["properties"]

    assert [name for name, about in properties.items() if not about.get("description")] == []
    assert {about.get("type") for about in properties.values()} <= {"string", "boolean"}


def test_endpoints_and_windows_are_choices():
    properties = parameter_schema(process_batch).model_dump()["properties"]

    assert properties["endpoint"]["enum"] == list(ENDPOINTS)
    assert properties["completion_window"]["enum"][:2] == ["1h", "3h"]
    for name in ("endpoint", "completion_window"):
        assert properties[name]["default"] in properties[name]["enum"]


def test_pairs_are_a_line_each():
    assert pairs_of("team = search\n\nurl=a=b\n") == {"team": "search", "url": "a=b"}
    assert pairs_of("") is None
    assert pairs_of(None) is None
    assert pairs_of({"a": "b"}) == {"a": "b"}


@pytest.mark.parametrize("lines", ["team", "=x", "a=1\na=2"])
def test_a_line_that_is_no_pair_is_refused(lines):
    with pytest.raises(InvalidInput, match="metadata"):
        pairs_of(lines)
