"""Every move of a batch from state to state: the legal ones set their timestamp, the others change nothing."""

from itertools import product

import msgspec
import pytest
from helpers.sample_records import NOW, make_batch

from batchline.models.batches import BatchError
from batchline.models.errors import Conflict, LeaseLost
from batchline.models.status import TRANSITIONS, BatchStatus, timestamp_field
from batchline.storage.records.store import Records

PAIRS = [*product(BatchStatus, BatchStatus)]
LEGAL = [(current, target) for current, target in PAIRS if target in TRANSITIONS[current]]
ILLEGAL = [(current, target) for current, target in PAIRS if target not in TRANSITIONS[current]]
LATER = NOW + 100


def test_legal_change_sets_only_status_and_timestamp(records: Records) -> None:
    for current, target in LEGAL:
        batch, other = records.add_batch(make_batch(status=current)), records.add_batch(make_batch(status=current))

        moved = records.change_status(batch.id, target, now=LATER)

        assert moved == msgspec.structs.replace(batch, status=target, **{timestamp_field(target): LATER})
        assert records.get_batch(batch.id) == moved
        assert records.get_batch(other.id) == other


def test_illegal_change_is_rejected_and_changes_nothing(records: Records) -> None:
    for current, target in ILLEGAL:
        batch = records.add_batch(make_batch(status=current))

        with pytest.raises(Conflict, match=f"{batch.id} is {current} and cannot become {target}"):
            records.change_status(batch.id, target, now=LATER, total=7)

        assert records.get_batch(batch.id) == batch


def test_every_pair_of_statuses_is_legal_or_illegal() -> None:
    assert (len(PAIRS), len(LEGAL)) == (64, 15)


def test_status_change_sets_given_fields(records: Records) -> None:
    batch = records.add_batch(make_batch(status=BatchStatus.FINALIZING))
    errors = (BatchError(message="all failed"),)

    moved = records.change_status(
        batch.id, BatchStatus.FAILED, now=LATER, failed=7, errors=errors, output_file_id=None
    )

    assert (moved.failed, moved.errors, moved.failed_at) == (7, errors, LATER)


def test_status_change_can_clear_end_timestamps(records: Records) -> None:
    batch = records.add_batch(make_batch(status=BatchStatus.COMPLETED, completed_at=NOW, finalizing_at=NOW))

    records.change_status(
        batch.id, BatchStatus.IN_PROGRESS, now=LATER, completed_at=None, finalizing_at=None, generation=1
    )

    again = records.get_batch(batch.id)
    assert (again.completed_at, again.finalizing_at, again.in_progress_at) == (None, None, LATER)


def test_status_change_keeps_the_lease(records: Records) -> None:
    batch = records.add_batch(make_batch())
    lease = records.claim(batch.id, owner="me", now=NOW, lease_s=60)

    moved = records.change_status(batch.id, BatchStatus.IN_PROGRESS, now=LATER, lease=lease)

    assert (moved.lease_owner, moved.epoch, moved.lease_at) == ("me", lease.epoch, NOW)


LOST = {
    "of an earlier epoch": lambda lease: msgspec.structs.replace(lease, epoch=lease.epoch - 1),
    "of a later epoch": lambda lease: msgspec.structs.replace(lease, epoch=lease.epoch + 1),
    "of another owner": lambda lease: msgspec.structs.replace(lease, owner="you"),
    "of another batch": lambda lease: msgspec.structs.replace(lease, batch_id="batch-1"),
}


@pytest.mark.parametrize("target", [BatchStatus.IN_PROGRESS, BatchStatus.COMPLETED], ids=["legal", "illegal"])
@pytest.mark.parametrize("name", [name for name in LOST if name != "of another batch"])
def test_status_change_with_lost_lease_is_rejected(name: str, target: BatchStatus, records: Records) -> None:
    batch = records.add_batch(make_batch())
    lease = records.claim(batch.id, owner="me", now=NOW, lease_s=60)
    before = records.get_batch(batch.id)

    with pytest.raises(LeaseLost, match=batch.id):
        records.change_status(batch.id, target, now=LATER, lease=LOST[name](lease))

    assert records.get_batch(batch.id) == before


def test_status_change_with_lease_of_another_batch_is_rejected(records: Records) -> None:
    mine, other = records.add_batch(make_batch()), records.add_batch(make_batch())
    lease = records.claim(other.id, owner="me", now=NOW, lease_s=60)

    with pytest.raises(Conflict):
        records.change_status(mine.id, BatchStatus.IN_PROGRESS, now=LATER, lease=lease)

    assert records.get_batch(mine.id) == mine
    assert records.get_batch(other.id).status is BatchStatus.VALIDATING


def test_status_change_without_lease_works_on_claimed_batch(records: Records) -> None:
    batch = records.add_batch(make_batch(status=BatchStatus.IN_PROGRESS))
    lease = records.claim(batch.id, owner="runner", now=NOW, lease_s=60)

    records.change_status(batch.id, BatchStatus.CANCELLING, now=LATER)

    assert records.heartbeat(lease, now=LATER).status is BatchStatus.CANCELLING
