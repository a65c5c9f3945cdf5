"""Records of files and batches: what goes in comes out, on SQLite and on a real PostgreSQL."""

import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from helpers.concurrency import in_processes, in_threads
from helpers.record_edits import change_batch
from helpers.sample_records import NOW, make_batch, make_file, make_full_batch, make_full_file

from batchline.models.batches import BatchDwExtResponse, BatchError, BatchResponse
from batchline.models.errors import Conflict, NotFound
from batchline.models.ids import new_batch_id
from batchline.models.options import BatchOptions
from batchline.models.settings import Settings
from batchline.models.status import BatchStatus
from batchline.storage.records.store import BatchRecord, FileRecord, Records, open_records

NO_ID = "batch-of-nobody"


# Files


@pytest.mark.parametrize("make", [make_file, make_full_file], ids=["bare", "full"])
def test_file_is_read_back_unchanged(make: Callable[[], FileRecord], records: Records) -> None:
    file = make()
    records.add_file(file)

    assert records.get_file(file.id) == file


def test_full_file_sets_every_field() -> None:
    assert None not in msgspec.structs.astuple(make_full_file())


def test_file_object_has_only_public_fields() -> None:
    shown = make_full_file().to_object().model_dump()

    assert shown.keys() == {"id", "object", "bytes", "created_at", "filename", "purpose", "status", "expires_at"}
    assert (shown["bytes"], shown["expires_at"]) == (2**40, NOW + 60)


def test_deleted_file_is_not_found(records: Records) -> None:
    file, other = make_file(), make_file()
    records.add_file(file)
    records.add_file(other)

    records.delete_file(file.id)

    with pytest.raises(NotFound, match=file.id):
        records.get_file(file.id)
    assert records.get_file(other.id) == other


def test_delete_of_unknown_file_is_not_found(records: Records) -> None:
    with pytest.raises(NotFound, match="file-of-nobody"):
        records.delete_file("file-of-nobody")


def test_unknown_file_is_not_found(records: Records) -> None:
    with pytest.raises(NotFound, match="file-of-nobody"):
        records.get_file("file-of-nobody")


def test_file_with_existing_id_is_rejected(records: Records) -> None:
    file = make_file()
    records.add_file(file)

    with pytest.raises(Conflict):
        records.add_file(msgspec.structs.replace(file, filename="other"))
    assert records.get_file(file.id) == file


# Batches


@pytest.mark.parametrize("make", [make_batch, make_full_batch], ids=["bare", "full"])
def test_batch_is_read_back_unchanged(make: Callable[[], BatchRecord], records: Records) -> None:
    batch = make()

    assert records.add_batch(batch) == batch
    assert records.get_batch(batch.id) == batch


def test_full_batch_sets_every_field() -> None:
    assert None not in msgspec.structs.astuple(make_full_batch())


@pytest.mark.parametrize("metadata", [{}, {"": ""}, {"k": "\0\n\x1f\u2028\U0001f600\\\"'"}], ids=str)
def test_metadata_with_any_text_is_kept(metadata: dict[str, str], records: Records) -> None:
    batch = records.add_batch(make_batch(metadata=metadata))

    assert records.get_batch(batch.id).metadata == metadata


@pytest.mark.parametrize(
    ("fields", "shown", "on_limit"),
    [
        ({}, None, "pause"),
        ({"default_on_limit": "stop"}, None, "stop"),
        ({"options": BatchOptions(on_limit="pause"), "default_on_limit": "stop"}, {"on_limit": "pause"}, "pause"),
        ({"options": BatchOptions(max_identical_failures=25)}, {"max_identical_failures": 25}, "pause"),
    ],
    ids=["none", "other default", "default given", "equal to default"],
)
def test_given_options_are_shown_and_defaults_apply_to_the_others(
    fields: dict[str, Any], shown: dict[str, Any] | None, on_limit: str, records: Records
) -> None:
    batch = records.get_batch(records.add_batch(make_batch(**fields)).id)

    assert batch.to_response().model_dump(mode="json").get("options") == shown
    assert batch.effective_options.model_dump() == {**BatchOptions().model_dump(), "on_limit": on_limit}


def test_batch_response_has_the_fields_of_the_api() -> None:
    batch = make_full_batch()
    shown = batch.to_response(include_analytics=True).model_dump()

    assert shown.keys() == BatchResponse.model_fields.keys()
    assert shown["request_counts"] == {"total": 2**40, "completed": 2**39, "failed": 3}
    assert shown["errors"]["data"][0]["line"] == 7
    assert shown["usage"] == {
        "input_tokens": 2**40,
        "input_tokens_details": {"cached_tokens": 7},
        "output_tokens": 8,
        "output_tokens_details": {"reasoning_tokens": 5},
        "total_tokens": 2**40 + 8,
    }
    assert shown["paused"] == {"at": NOW + 9, "code": "by_user", "message": "until tomorrow"}
    assert shown["options"] == {"on_truncated": "fail", "max_identical_failures": 25}
    nested = {"object", "errors", "request_counts", "analytics", "dwext", "usage", "paused", "options"}
    for name in shown.keys() - nested:
        assert shown[name] == getattr(batch, name)


def test_batch_response_omits_analytics_by_default() -> None:
    assert "analytics" not in make_full_batch().to_response().model_dump()


def test_batch_response_omits_empty_fields() -> None:
    assert None not in make_batch().to_response().model_dump().values()


def test_unknown_batch_is_not_found(records: Records) -> None:
    with pytest.raises(NotFound, match=NO_ID):
        records.get_batch(NO_ID)


def test_batch_with_existing_id_is_rejected(records: Records) -> None:
    batch = records.add_batch(make_batch())

    with pytest.raises(Conflict):
        records.add_batch(msgspec.structs.replace(batch, endpoint="/other"))
    assert records.get_batch(batch.id) == batch


CHANGES = {
    "total": 3,
    "metadata": {"a": "b"},
    "errors": (BatchError(code="x", message="y"),),
    "dwext": BatchDwExtResponse(source="cli"),
    "output_file_id": "file-1",
    "expires_at": NOW + 1,
}


@pytest.mark.parametrize("field", CHANGES)
def test_status_change_sets_only_the_given_field(field: str, records: Records) -> None:
    batch, other = records.add_batch(make_batch()), records.add_batch(make_batch())
    moved = {"status": BatchStatus.IN_PROGRESS, "in_progress_at": NOW}
    expected = msgspec.structs.replace(batch, **moved, **{field: CHANGES[field]})

    assert records.change_status(batch.id, BatchStatus.IN_PROGRESS, now=NOW, **{field: CHANGES[field]}) == expected
    assert records.get_batch(batch.id) == expected
    assert records.get_batch(other.id) == other


@pytest.mark.parametrize("field", ["metadata", "errors", "analytics", "dwext", "output_file_id", "completed_at"])
def test_status_change_with_none_clears_the_field(field: str, records: Records) -> None:
    batch = records.add_batch(make_full_batch())

    records.change_status(batch.id, BatchStatus.IN_PROGRESS, now=NOW, **{field: None})

    moved = {"status": BatchStatus.IN_PROGRESS, "in_progress_at": NOW}
    assert records.get_batch(batch.id) == msgspec.structs.replace(batch, **moved, **{field: None})


@pytest.mark.parametrize(
    "change",
    [
        lambda records: records.change_status(NO_ID, BatchStatus.IN_PROGRESS, now=NOW),
        lambda records: records.claim(NO_ID, owner="me", now=NOW, lease_s=60),
    ],
    ids=["move", "claim"],
)
def test_change_of_unknown_batch_is_not_found(change: Callable[[Records], object], records: Records) -> None:
    with pytest.raises(NotFound, match=NO_ID):
        change(records)


# One batch for a flow run


def test_batch_is_found_by_its_flow_run(records: Records) -> None:
    run = str(uuid.uuid4())
    batch = records.add_batch(make_batch(flow_run_id=run))
    records.add_batch(make_batch(flow_run_id=str(uuid.uuid4())))

    assert records.find_batch_of_flow_run(run) == batch


def test_flow_run_without_batch_finds_none(records: Records) -> None:
    records.add_batch(make_batch())

    assert records.find_batch_of_flow_run(str(uuid.uuid4())) is None


def test_second_batch_of_one_flow_run_returns_the_first(records: Records) -> None:
    run = str(uuid.uuid4())
    first = records.add_batch(make_batch(flow_run_id=run))
    change_batch(records, first.id, total=7)

    again = make_batch(flow_run_id=run, endpoint="/other")

    assert records.add_batch(again) == msgspec.structs.replace(first, total=7)
    with pytest.raises(NotFound):
        records.get_batch(again.id)


def test_batches_without_flow_run_are_independent(records: Records) -> None:
    first, second = records.add_batch(make_batch()), records.add_batch(make_batch())

    assert {records.get_batch(batch.id).id for batch in (first, second)} == {first.id, second.id}


def test_threads_adding_batch_for_one_flow_run_get_the_same(records: Records) -> None:
    run = str(uuid.uuid4())

    made = in_threads(8, lambda number: records.add_batch(make_batch(flow_run_id=run, total=number)))

    assert len({batch.id for batch in made}) == 1
    assert made[0] == records.find_batch_of_flow_run(run)


def make_batch_of_run(number: int, settings: Settings, run: str) -> BatchRecord:
    records = open_records(settings)
    try:
        return records.add_batch(make_batch(flow_run_id=run, total=number))
    finally:
        records.close()


@pytest.mark.system
def test_processes_adding_batch_for_one_flow_run_get_the_same(database: Settings, records: Records) -> None:
    run = str(uuid.uuid4())

    made = in_processes(3, make_batch_of_run, database, run)

    assert {batch.id for batch in made} == {records.find_batch_of_flow_run(run).id}


# Many at once


def write_much(number: int, settings: Settings, batch_id: str, times: int) -> int:
    records = open_records(settings)
    try:
        for turn in range(times):
            records.add_file(make_file(id=f"file-{number}-{turn}"))
            change_batch(records, batch_id, total=turn)
            records.get_batch(batch_id)
    finally:
        records.close()
    return times


@pytest.mark.system
def test_concurrent_writes_of_processes_are_all_stored(database: Settings, records: Records) -> None:
    batch = records.add_batch(make_batch())

    assert in_processes(4, write_much, database, batch.id, 100) == [100] * 4

    assert [records.get_file(f"file-{number}-{turn}").id for number in range(4) for turn in (0, 99)]
    assert records.get_batch(batch.id).total == 99


def test_concurrent_writes_of_threads_are_all_stored(records: Records) -> None:
    def write(number: int) -> None:
        for turn in range(20):
            records.add_file(make_file(id=f"file-{number}-{turn}"))

    assert in_threads(8, write) == [None] * 8
    assert [records.get_file(f"file-{number}-19").id for number in range(8)]


def test_closed_records_reopen_on_use(records: Records) -> None:
    batch = records.add_batch(make_batch())
    records.close()

    assert records.get_batch(batch.id) == batch


def test_id_that_no_database_can_store_is_not_found(records: Records) -> None:
    with pytest.raises(NotFound):
        records.get_batch("batch-\0")
    with pytest.raises(NotFound):
        records.get_batch(new_batch_id() + "x" * 1_000)
