"""Leases: claiming a batch, renewing, losing and releasing its lease."""

import re
import time

import pytest
from helpers.concurrency import in_processes, in_threads
from helpers.sample_records import NOW, make_batch

from batchline.models.errors import Conflict, LeaseLost
from batchline.models.settings import Settings
from batchline.models.status import BatchStatus
from batchline.storage.records.lease_owners import new_lease_owner
from batchline.storage.records.store import BatchRecord, Lease, Records, open_records

LEASE_S = 60.0


@pytest.fixture
def batch(records: Records) -> BatchRecord:
    return records.add_batch(make_batch(status=BatchStatus.IN_PROGRESS))


def claim(records: Records, batch: BatchRecord, owner: str, now: float) -> Lease:
    return records.claim(batch.id, owner=owner, now=now, lease_s=LEASE_S)


def test_unclaimed_batch_can_be_claimed(records: Records, batch: BatchRecord) -> None:
    lease = claim(records, batch, "first", NOW + 0.25)

    held = records.get_batch(batch.id)
    assert (lease.epoch, held.epoch, held.lease_owner, held.lease_at) == (1, 1, "first", NOW + 0.25)


@pytest.mark.parametrize("age_s", [0, 1, 59.9, 60])
def test_claim_is_rejected_while_heartbeat_is_fresh(age_s: float, records: Records, batch: BatchRecord) -> None:
    claim(records, batch, "first", NOW)
    before = records.get_batch(batch.id)

    with pytest.raises(Conflict, match=f"{batch.id} is being run by another process \\(first\\)") as raised:
        claim(records, batch, "second", NOW + age_s)

    assert not isinstance(raised.value, LeaseLost)
    assert records.get_batch(batch.id) == before


def test_claim_after_stale_heartbeat_takes_over(records: Records, batch: BatchRecord) -> None:
    claim(records, batch, "first", NOW)

    assert claim(records, batch, "second", NOW + 60.1) == Lease(batch.id, "second", 2)


def test_heartbeat_prevents_takeover(records: Records, batch: BatchRecord) -> None:
    lease = claim(records, batch, "first", NOW)
    records.heartbeat(lease, now=NOW + 50)

    with pytest.raises(Conflict):
        claim(records, batch, "second", NOW + 100)
    assert claim(records, batch, "second", NOW + 111).epoch == 2


def test_owner_claiming_again_gets_next_epoch(records: Records, batch: BatchRecord) -> None:
    old = claim(records, batch, "first", NOW)

    new = claim(records, batch, "first", NOW + 1)

    assert new.epoch == old.epoch + 1
    with pytest.raises(LeaseLost):
        records.heartbeat(old, now=NOW + 2)


def test_heartbeat_stores_counts_and_returns_status(records: Records, batch: BatchRecord) -> None:
    lease = claim(records, batch, "first", NOW)

    status = records.heartbeat(lease, now=NOW + 5.5, completed=3, failed=2).status

    noted = records.get_batch(batch.id)
    assert status is BatchStatus.IN_PROGRESS
    assert (noted.completed, noted.failed, noted.lease_at) == (3, 2, NOW + 5.5)


def test_heartbeat_without_counts_keeps_them(records: Records, batch: BatchRecord) -> None:
    lease = claim(records, batch, "first", NOW)
    records.heartbeat(lease, now=NOW + 1, completed=3, failed=0)

    records.heartbeat(lease, now=NOW + 2)

    assert (records.get_batch(batch.id).completed, records.get_batch(batch.id).failed) == (3, 0)


def test_lost_lease_can_neither_send_heartbeat_nor_change_status(records: Records, batch: BatchRecord) -> None:
    lost = claim(records, batch, "first", NOW)
    claim(records, batch, "second", NOW + 61)
    before = records.get_batch(batch.id)

    for change in (
        lambda: records.heartbeat(lost, now=NOW + 62, completed=9),
        lambda: records.change_status(batch.id, BatchStatus.FINALIZING, now=NOW + 62, lease=lost),
    ):
        with pytest.raises(LeaseLost, match="taken over by another runner \\(second\\)"):
            change()

    assert records.get_batch(batch.id) == before


def test_released_lease_can_be_claimed_at_once(records: Records, batch: BatchRecord) -> None:
    records.release(claim(records, batch, "first", NOW))

    assert claim(records, batch, "second", NOW + 1).epoch == 2


def test_released_lease_cannot_send_heartbeat(records: Records, batch: BatchRecord) -> None:
    lease = claim(records, batch, "first", NOW)
    records.release(lease)

    with pytest.raises(LeaseLost, match=r"\(none\)"):
        records.heartbeat(lease, now=NOW + 1)


def test_releasing_lost_lease_keeps_the_new_one(records: Records, batch: BatchRecord) -> None:
    lost = claim(records, batch, "first", NOW)
    held = claim(records, batch, "second", NOW + 61)

    records.release(lost)

    assert records.heartbeat(held, now=NOW + 62).status is BatchStatus.IN_PROGRESS


def test_lease_released_twice_stays_released(records: Records, batch: BatchRecord) -> None:
    lease = claim(records, batch, "first", NOW)
    records.release(lease)
    records.release(lease)

    assert records.get_batch(batch.id).lease_owner is None


def test_lease_of_another_batch_does_not_block_claim(records: Records, batch: BatchRecord) -> None:
    other = records.add_batch(make_batch())
    claim(records, other, "first", NOW)

    assert claim(records, batch, "second", NOW).epoch == 1


# Clocks and dead processes


@pytest.mark.system
def test_clock_ahead_does_not_take_over_live_lease(
    ready_postgres: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = open_records(ready_postgres)
    batch = records.add_batch(make_batch(status=BatchStatus.IN_PROGRESS))
    records.claim(batch.id, owner="another:1:machine", lease_s=LEASE_S)

    here = time.time
    monkeypatch.setattr(time, "time", lambda: here() + 10 * LEASE_S)

    assert records.get_batch(batch.id).is_leased(now=records.now(), lease_s=LEASE_S)
    with pytest.raises(Conflict, match="is being run by another"):
        records.claim(batch.id, owner="second", lease_s=LEASE_S)
    with pytest.raises(Conflict, match="is being run"):
        records.delete_batch(batch.id, lease_s=LEASE_S)
    records.close()


@pytest.mark.system
def test_clock_behind_does_not_extend_expired_lease(
    ready_postgres: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = open_records(ready_postgres)
    batch = records.add_batch(make_batch(status=BatchStatus.IN_PROGRESS))
    here = time.time
    monkeypatch.setattr(time, "time", lambda: here() - 10 * LEASE_S)

    lease = records.claim(batch.id, owner="another:1:machine", lease_s=0.1)
    assert records.heartbeat(lease).status is BatchStatus.IN_PROGRESS
    age_s = records.report_sender(batch.id, lease.epoch, "sender", "{}").age_s
    time.sleep(0.2)

    assert 0 <= age_s < 10
    assert records.claim(batch.id, owner="second", lease_s=0.1).epoch == 2
    records.close()


def owner_that_has_ended(number: int) -> str:
    del number
    return new_lease_owner()


def test_lease_of_dead_local_process_can_be_claimed_at_once(records: Records, batch: BatchRecord) -> None:
    [dead] = in_processes(1, owner_that_has_ended)
    claim(records, batch, dead, NOW)

    assert not records.get_batch(batch.id).is_leased(now=NOW, lease_s=LEASE_S)
    assert claim(records, batch, "second", NOW).epoch == 2


ALIVE_OR_UNKNOWN = {
    "this process": lambda dead: new_lease_owner(),
    "a process of another machine": lambda dead: f"elsewhere{dead}",
    "a process of another container": lambda dead: re.sub(r":\w+-", ":0badcafe-", dead),
    "a name of another form": lambda dead: dead.rpartition("-")[0],
}


@pytest.mark.parametrize("name", ALIVE_OR_UNKNOWN)
def test_lease_of_possibly_live_owner_cannot_be_claimed(name: str, records: Records, batch: BatchRecord) -> None:
    [dead] = in_processes(1, owner_that_has_ended)
    claim(records, batch, ALIVE_OR_UNKNOWN[name](dead), NOW)

    with pytest.raises(Conflict):
        claim(records, batch, "second", NOW)


def test_lease_of_dead_process_with_remote_senders_cannot_be_claimed(records: Records, batch: BatchRecord) -> None:
    [dead] = in_processes(1, owner_that_has_ended)
    lease = claim(records, batch, dead, NOW)
    records.report_sender(batch.id, lease.epoch, "sender", "{}")

    with pytest.raises(Conflict):
        claim(records, batch, "second", NOW)
    assert claim(records, batch, "second", NOW + LEASE_S + 1).epoch == 2


# Races


def test_threads_claiming_at_once_get_one_lease(records: Records, batch: BatchRecord) -> None:
    won = in_threads(8, lambda number: claim(records, batch, f"thread {number}", NOW))

    leases = [each for each in won if isinstance(each, Lease)]
    assert len(leases) == 1
    assert [type(each) for each in won].count(Conflict) == 7
    assert records.get_batch(batch.id).lease_owner == leases[0].owner


def test_threads_taking_over_at_once_get_one_lease(records: Records, batch: BatchRecord) -> None:
    claim(records, batch, "dead", NOW)

    won = in_threads(8, lambda number: claim(records, batch, f"thread {number}", NOW + 61))

    assert [lease.epoch for lease in won if isinstance(lease, Lease)] == [2]


def claim_in_process(number: int, settings: Settings, batch_id: str) -> Lease:
    records = open_records(settings)
    try:
        return records.claim(batch_id, owner=f"process {number}", now=NOW, lease_s=LEASE_S)
    finally:
        records.close()


@pytest.mark.system
def test_processes_claiming_at_once_get_one_lease(
    database: Settings, records: Records, batch: BatchRecord
) -> None:
    won = in_processes(3, claim_in_process, database, batch.id)

    leases = [each for each in won if isinstance(each, Lease)]
    assert len(leases) == 1
    assert [type(each) for each in won].count(Conflict) == 2
    assert records.get_batch(batch.id).epoch == 1
