"""The pause of a batch in the records: its time, its reason, and the clock that stands still."""

import threading

import pytest
from helpers.sample_records import NOW, make_batch

from batchline.models.batches import BatchPause, ListBatchesQuery
from batchline.models.errors import Conflict, NotFound
from batchline.models.status import BatchStatus
from batchline.storage.records.store import Records

PAUSABLE = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS)


@pytest.fixture
def clock(records: Records, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that the database's clock shows, to be changed by the test."""
    shown = [float(NOW)]
    monkeypatch.setattr(records, "now", lambda: shown[0])
    return shown


def paused_ids(records: Records, **query: object) -> set[str]:
    page, _ = records.list_records(ListBatchesQuery.model_validate({"limit": 100, **query}), now=NOW + 10_000)
    return {batch.id for batch in page}


@pytest.mark.parametrize("status", PAUSABLE)
def test_pause_keeps_the_status_and_shows_why(records, clock, status):
    batch = records.add_batch(make_batch(status=status))

    paused = records.pause(batch.id, code="by_user", message="wait for the price list")

    assert paused == records.get_batch(batch.id)
    assert paused.status is status
    assert paused.to_response().paused == BatchPause(at=NOW, code="by_user", message="wait for the price list")
    assert batch.to_response().paused is None


@pytest.mark.parametrize("status", sorted(set(BatchStatus) - set(PAUSABLE)))
def test_batch_that_sends_nothing_more_cannot_be_paused(records, status):
    batch = records.add_batch(make_batch(status=status))

    with pytest.raises(Conflict, match=f"{batch.id} is {status} and cannot be paused"):
        records.pause(batch.id, code="by_user", message="stop")

    assert records.get_batch(batch.id) == batch


def test_second_pause_changes_nothing(records, clock):
    batch = records.add_batch(make_batch(status=BatchStatus.IN_PROGRESS))
    first = records.pause(batch.id, code="max_cost", message="100 USD are spent")
    clock[0] += 60

    assert records.pause(batch.id, code="by_user", message="me too") == first


def test_batch_paused_by_many_at_once_is_paused_once(records):
    batch = records.add_batch(make_batch(status=BatchStatus.IN_PROGRESS))
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(records.pause(batch.id, code="by_user", message="stop")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {paused.pauses for paused in found} == {1}
    assert len(found) == 8


def test_resumed_batch_gets_the_time_of_its_pause(records, clock):
    batch = records.add_batch(make_batch(status=BatchStatus.IN_PROGRESS))
    records.pause(batch.id, code="by_user", message="stop")
    clock[0] += 5_000

    resumed = records.resume(batch.id)

    assert resumed.expires_at == batch.expires_at + 5_000
    assert resumed.pause is None
    assert records.pause(batch.id, code="by_user", message="again").pauses == 2


def test_clock_set_back_during_a_pause_does_not_shorten_the_window(records, clock):
    batch = records.add_batch(make_batch(status=BatchStatus.IN_PROGRESS))
    records.pause(batch.id, code="by_user", message="stop")
    clock[0] -= 5_000

    assert records.resume(batch.id).expires_at == batch.expires_at


def test_batch_that_is_not_paused_cannot_be_resumed(records):
    batch = records.add_batch(make_batch(status=BatchStatus.IN_PROGRESS))

    with pytest.raises(Conflict, match=f"{batch.id} is in_progress and is not paused"):
        records.resume(batch.id)
    with pytest.raises(NotFound):
        records.resume("batch-of-nobody")


def test_validated_batch_stays_paused_and_a_cancelled_one_does_not(records):
    batch = records.add_batch(make_batch(status=BatchStatus.VALIDATING))
    records.pause(batch.id, code="by_user", message="stop")

    assert records.change_status(batch.id, BatchStatus.IN_PROGRESS, now=NOW).pause is not None
    assert records.change_status(batch.id, BatchStatus.CANCELLING, now=NOW).pause is None
    assert paused_ids(records, paused=True) == set()


def test_lists_show_paused_batches_and_never_as_overdue(records):
    late, paused = (
        records.add_batch(make_batch(status=BatchStatus.IN_PROGRESS, expires_at=NOW)) for _ in range(2)
    )
    over = records.add_batch(make_batch(status=BatchStatus.COMPLETED))
    records.pause(paused.id, code="by_user", message="stop")

    assert paused_ids(records, paused=True) == {paused.id}
    assert paused_ids(records, paused=False) == {late.id, over.id}
    assert paused_ids(records, status="expired") == {late.id}
    assert paused_ids(records, status="in_progress") == {late.id, paused.id}
    records.resume(paused.id)
    assert paused_ids(records, paused=True) == set()


def test_heartbeat_reads_that_the_batch_was_paused(records):
    batch = records.add_batch(make_batch(status=BatchStatus.IN_PROGRESS))
    lease = records.claim(batch.id, owner="me", lease_s=60)
    records.pause(batch.id, code="by_user", message="stop")

    assert records.heartbeat(lease).pause is not None
    assert records.report_sender(batch.id, lease.epoch, "other", "{}").is_paused
