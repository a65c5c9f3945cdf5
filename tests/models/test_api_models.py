"""The objects that people and APIs see, against the shapes of the Doubleword Control Layer 8.38.2.

The tables were written by hand from its `batches.rs`: field → whether it may be absent. What is ours beyond it is
listed apart, so that a field cannot come or go unseen.
"""

import json

import pytest
from pydantic import BaseModel, ValidationError

from batchline.models.analytics import BatchAnalytics
from batchline.models.base import WireModel
from batchline.models.batches import (
    BatchDwExtResponse,
    BatchError,
    BatchErrors,
    BatchListResponse,
    BatchResponse,
    BatchResultItem,
    BatchResultsQuery,
    CreateBatchRequest,
    ListBatchesQuery,
    RequestCounts,
    RetryRequestsRequest,
)
from batchline.models.files import FileObject
from batchline.models.pagination import CursorPagination, Pagination
from batchline.models.status import BatchStatus

ALWAYS, OPTIONAL = False, True

ANSWERS: dict[type[WireModel], dict[str, bool]] = {
    BatchErrors: {"data": ALWAYS},
    BatchError: {"code": OPTIONAL, "line": OPTIONAL, "message": ALWAYS, "param": OPTIONAL},
    BatchResponse: {
        "id": ALWAYS,
        "object": ALWAYS,
        "endpoint": ALWAYS,
        "errors": OPTIONAL,
        "input_file_id": ALWAYS,
        "completion_window": ALWAYS,
        "status": ALWAYS,
        "output_file_id": OPTIONAL,
        "error_file_id": OPTIONAL,
        "created_at": ALWAYS,
        "in_progress_at": OPTIONAL,
        "expires_at": OPTIONAL,
        "finalizing_at": OPTIONAL,
        "completed_at": OPTIONAL,
        "failed_at": OPTIONAL,
        "expired_at": OPTIONAL,
        "cancelling_at": OPTIONAL,
        "cancelled_at": OPTIONAL,
        "request_counts": ALWAYS,
        "metadata": OPTIONAL,
        "analytics": OPTIONAL,
        "dwext": OPTIONAL,
    },
    BatchAnalytics: {
        "total_requests": ALWAYS,
        "total_prompt_tokens": ALWAYS,
        "total_completion_tokens": ALWAYS,
        "total_reasoning_tokens": OPTIONAL,
        "total_tokens": ALWAYS,
        "avg_duration_ms": OPTIONAL,
        "avg_ttfb_ms": OPTIONAL,
        "total_cost": OPTIONAL,
    },
    RequestCounts: {"total": ALWAYS, "completed": ALWAYS, "failed": ALWAYS},
    BatchListResponse: {
        "object": ALWAYS,
        "data": ALWAYS,
        "first_id": OPTIONAL,
        "last_id": OPTIONAL,
        "has_more": ALWAYS,
    },
}

QUESTIONS: dict[type[BaseModel], set[str]] = {
    CreateBatchRequest: {"input_file_id", "endpoint", "completion_window", "metadata", "options"},
    RetryRequestsRequest: {"request_ids"},
    ListBatchesQuery: {
        *CursorPagination.model_fields,
        "search",
        "include",
        "member_id",
        "status",
        "paused",
        "created_after",
        "created_before",
        "active_first",
    },
    BatchResultsQuery: {*Pagination.model_fields, "search", "status"},
}

OURS: dict[type[WireModel], dict[str, bool]] = {
    BatchDwExtResponse: {
        "source": ALWAYS,
        "source_name": OPTIONAL,
        "source_id": OPTIONAL,
        "source_file": OPTIONAL,
        "sync_id": OPTIONAL,
    },
    FileObject: {
        "id": ALWAYS,
        "object": ALWAYS,
        "bytes": ALWAYS,
        "created_at": ALWAYS,
        "filename": ALWAYS,
        "purpose": ALWAYS,
        "status": ALWAYS,
        "expires_at": OPTIONAL,
    },
    BatchResultItem: {
        "id": ALWAYS,
        "custom_id": ALWAYS,
        "model": OPTIONAL,
        "input_body": OPTIONAL,
        "response_body": OPTIONAL,
        "error": OPTIONAL,
        "status": ALWAYS,
        "finish_reason": OPTIONAL,
        "mark": OPTIONAL,
    },
}

OPENAIS: dict[type[WireModel], dict[str, bool]] = {
    BatchErrors: {"object": ALWAYS},
    BatchResponse: {"usage": OPTIONAL, "model": OPTIONAL},
}
"""Fields of OpenAI's that the control layer's objects have not."""

BEYOND: dict[type[WireModel], dict[str, bool]] = {
    BatchAnalytics: {"total_cached_tokens": OPTIONAL},
    BatchResponse: {"options": OPTIONAL, "paused": OPTIONAL},
}
"""Fields of ours that neither of them has."""

SHAPES = {
    model: {**fields, **OPENAIS.get(model, {}), **BEYOND.get(model, {})}
    for model, fields in {**ANSWERS, **OURS}.items()
}

SMALLEST: dict[type[WireModel], WireModel] = {
    BatchErrors: BatchErrors(data=[]),
    BatchError: BatchError(message="Invalid JSON"),
    BatchResponse: BatchResponse(
        id="batch-1",
        endpoint="/v1/chat/completions",
        input_file_id="file-1",
        completion_window="24h",
        status=BatchStatus.VALIDATING,
        created_at=1_703_187_200,
    ),
    BatchAnalytics: BatchAnalytics(),
    RequestCounts: RequestCounts(),
    BatchListResponse: BatchListResponse(data=[]),
    BatchDwExtResponse: BatchDwExtResponse(source="cli"),
    FileObject: FileObject(id="file-1", bytes=1, created_at=1, filename="a.jsonl", purpose="batch"),
    BatchResultItem: BatchResultItem(id="req-1-1", custom_id="a", status="pending"),
}


def named(model: type[BaseModel]) -> str:
    return model.__name__


@pytest.mark.parametrize("model", SHAPES, ids=named)
def test_response_model_fields_match_contract_in_order(model):
    assert list(model.model_fields) == list(SHAPES[model])


@pytest.mark.parametrize("model", SHAPES, ids=named)
def test_absent_fields_are_omitted_and_required_ones_present(model):
    assert list(SMALLEST[model].model_dump()) == [name for name, optional in SHAPES[model].items() if not optional]


@pytest.mark.parametrize("model", SHAPES, ids=named)
def test_json_and_python_dumps_omit_the_same_fields(model):
    assert json.loads(SMALLEST[model].model_dump_json()).keys() == SMALLEST[model].model_dump().keys()


@pytest.mark.parametrize("model", SHAPES, ids=named)
def test_json_schema_lists_fields_in_both_modes(model):
    for mode in ("validation", "serialization"):
        assert list(model.model_json_schema(mode=mode)["properties"]) == list(SHAPES[model])


@pytest.mark.parametrize("model", SHAPES, ids=named)
def test_response_models_are_frozen(model):
    with pytest.raises(ValidationError, match="frozen"):
        setattr(SMALLEST[model], next(iter(model.model_fields)), "other")


@pytest.mark.parametrize("model", QUESTIONS, ids=named)
def test_query_model_fields_match_contract(model):
    assert set(model.model_fields) == QUESTIONS[model]


@pytest.mark.parametrize("model", QUESTIONS, ids=named)
def test_query_with_unknown_field_is_rejected(model):
    with pytest.raises(ValidationError, match="surprise"):
        model.model_validate({"surprise": 1})


@pytest.mark.parametrize(
    ("model", "constant"),
    [(BatchResponse, "batch"), (BatchListResponse, "list"), (FileObject, "file")],
    ids=["batch", "list", "file"],
)
def test_object_field_is_constant(model, constant):
    assert SMALLEST[model].model_dump()["object"] == constant


@pytest.mark.parametrize("model", [BatchResponse, BatchListResponse, FileObject], ids=named)
def test_other_object_value_is_rejected(model):
    fields = SMALLEST[model].model_dump() | {"object": "thread"}
    with pytest.raises(ValidationError, match="object"):
        model.model_validate(fields)


def test_total_cost_is_a_string_in_json():
    assert json.loads(BatchAnalytics(total_cost="0.750").model_dump_json())["total_cost"] == "0.750"


def test_numeric_total_cost_is_rejected():
    with pytest.raises(ValidationError, match="total_cost"):
        BatchAnalytics.model_validate({"total_cost": 0.75})


def test_null_inside_response_body_is_kept():
    item = BatchResultItem(id="req-1-1", custom_id="a", status="completed", response_body={"refusal": None})
    assert item.model_dump()["response_body"] == {"refusal": None}


def test_full_batch_survives_json_round_trip():
    batch = BatchResponse.model_validate(
        SMALLEST[BatchResponse].model_dump()
        | {name: 7 for name in BatchResponse.model_fields if name.endswith("_at")}
        | {
            "status": "completed",
            "errors": {
                "object": "list",
                "data": [{"code": "invalid_json_line", "line": 5, "message": "no", "param": "body"}],
            },
            "output_file_id": "file-2",
            "error_file_id": "file-3",
            "metadata": {"team": "search"},
            "analytics": BatchAnalytics(total_cost="0.75", avg_ttfb_ms=1.5).model_dump(),
            "dwext": {"source": "sync", "sync_id": "s-1"},
        }
    )
    assert BatchResponse.model_validate_json(batch.model_dump_json()) == batch


@pytest.mark.parametrize("query", [{"limit": 0}, {"limit": 101}, {"status": "validating"}], ids=str)
def test_list_query_out_of_range_is_rejected(query):
    with pytest.raises(ValidationError, match=next(iter(query))):
        ListBatchesQuery.model_validate(query)


def test_list_query_defaults_to_20_newest():
    assert ListBatchesQuery().model_dump(exclude_none=True) == {"limit": 20, "active_first": False}


def test_results_query_defaults_to_all_from_first():
    assert BatchResultsQuery().model_dump(exclude_none=True) == {"skip": 0}


def test_retry_without_request_ids_is_rejected():
    with pytest.raises(ValidationError, match="request_ids"):
        RetryRequestsRequest(request_ids=[])
