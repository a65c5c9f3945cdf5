"""Records to store, each field set or only those that must be."""

import uuid
from typing import Any

from batchline.models.analytics import BatchAnalytics
from batchline.models.batches import BatchDwExtResponse, BatchError, BatchListResponse, ListBatchesQuery
from batchline.models.ids import new_batch_id, new_file_id
from batchline.models.options import BatchOptions
from batchline.models.status import BatchStatus
from batchline.storage.records.store import BatchRecord, FileRecord, Records

NOW = 1_764_000_000


def make_file(**changes: Any) -> FileRecord:
    """A file with only what it must have."""
    fields = {
        "id": new_file_id(),
        "purpose": "batch",
        "filename": "requests.jsonl",
        "size_bytes": 123,
        "created_at": NOW,
        "key": "files/x/content.jsonl",
        "status": "processed",
    }
    return FileRecord(**{**fields, **changes})


def make_full_file() -> FileRecord:
    """A file with every field set."""
    return make_file(
        size_bytes=2**40,
        filename="Größe ✓ '\".jsonl",
        expires_at=NOW + 60,
        sha256="0" * 64,
        member_id=str(uuid.uuid4()),
    )


def make_batch(**changes: Any) -> BatchRecord:
    """A batch with only what it must have."""
    fields = {
        "id": new_batch_id(),
        "status": BatchStatus.VALIDATING,
        "endpoint": "/v1/chat/completions",
        "input_file_id": new_file_id(),
        "input_filename": "requests.jsonl",
        "completion_window": "24h",
        "created_at": NOW,
        "expires_at": NOW + 86_400,
    }
    return BatchRecord(**{**fields, **changes})


def make_full_batch() -> BatchRecord:
    """A batch with every field set, each to something of its own."""
    return make_batch(
        status=BatchStatus.CANCELLED,
        output_file_id=new_file_id(),
        error_file_id=new_file_id(),
        in_progress_at=NOW + 1,
        finalizing_at=NOW + 2,
        completed_at=NOW + 3,
        failed_at=NOW + 4,
        expired_at=NOW + 5,
        cancelling_at=NOW + 6,
        cancelled_at=NOW + 7,
        total=2**40,
        completed=2**39,
        failed=3,
        unanswered=4,
        model="gpt-4o-mini",
        metadata={"team": "Größe ✓", "quote": "\"'\\ %_\n\0", "": ""},
        errors=(BatchError(code="invalid_json_line", line=7, message="no JSON", param="body"),),
        analytics=BatchAnalytics(
            total_requests=3,
            total_prompt_tokens=2**40,
            total_cached_tokens=7,
            total_completion_tokens=8,
            total_reasoning_tokens=5,
            total_tokens=2**40 + 8,
            avg_duration_ms=0.1,
            total_cost="0.10",
        ),
        dwext=BatchDwExtResponse(source="sync", source_name="s", source_id="1", source_file="f", sync_id="2"),
        member_id=str(uuid.uuid4()),
        flow_run_id=str(uuid.uuid4()),
        generation=1,
        epoch=2,
        lease_owner="host:1",
        lease_at=NOW + 0.123456,
        output_expires_after=3_600,
        plan_key="batches/batch-1/g1/plan.a.json",
        final_prefix="batches/batch-1/g0/final.a/",
        last_flow_run_id=str(uuid.uuid4()),
        announced_at=NOW + 8,
        paused_at=NOW + 9,
        pause_code="by_user",
        pause_message="until tomorrow",
        pauses=2,
        options=BatchOptions(on_truncated="fail", max_identical_failures=25),
        default_on_limit="stop",
    )


def list_page(records: Records, query: ListBatchesQuery, *, now: int) -> BatchListResponse:
    """The page of batches as the API shows it."""
    found, has_more = records.list_records(query, now=now)
    page = [record.to_response(include_analytics=query.includes_analytics) for record in found]
    ends = {"first_id": page[0].id, "last_id": page[-1].id} if page else {}
    return BatchListResponse(data=page, has_more=has_more, **ends)
