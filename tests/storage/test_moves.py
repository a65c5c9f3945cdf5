"""Every move of a batch from state to state: the legal ones set their timestamp, the others change nothing."""

from itertools import product

import msgspec
import pytest
from some_records import NOW, a_batch

from batchline.models.batches import BatchError
from batchline.models.errors import Conflict, LeaseLost
from batchline.models.status import TRANSITIONS, BatchStatus, timestamp_field
from batchline.storage.records.store import Lease, Records

PAIRS = [*product(BatchStatus, BatchStatus)]
LEGAL = [(current, target) for current, target in PAIRS if target in TRANSITIONS[current]]
ILLEGAL = [(current, target) for current, target in PAIRS if target not in TRANSITIONS[current]]
LATER = NOW + 100


def test_a_legal_move_sets_the_state_and_its_timestamp_and_nothing_else(records: Records) -> None:
    for current, target in LEGAL:
        batch, other = records.add_batch(a_batch(status=current)), records.add_batch(a_batch(status=current))

        moved = records.change_status(batch.id, target, now=LATER)

        assert moved == msgspec.structs.replace(batch, status=target, **{timestamp_field(target): LATER})
        assert records.get_batch(batch.id) == moved
        assert records.get_batch(other.id) == other


def test_an_illegal_move_is_refused_and_changes_nothing(records: Records) -> None:
    for current, target in ILLEGAL:
        batch = records.add_batch(a_batch(status=current))

        with pytest.raises(Conflict, match=f"{batch.id} is {current} and cannot become {target}"):
            records.change_status(batch.id, target, now=LATER, total=7)

        assert records.get_batch(batch.id) == batch


def test_every_pair_of_states_is_one_or_the_other() -> None:
    assert (len(PAIRS), len(LEGAL)) == (64, 15)


def test_a_move_sets_the_fields_that_come_with_it(records: Records) -> None:
    batch = records.add_batch(a_batch(status=BatchStatus.FINALIZING))
    errors = (BatchError(message="all failed"),)

    moved = records.change_status(
        batch.id, BatchStatus.FAILED, now=LATER, failed=7, errors=errors, output_file_id=None
    )

    assert (moved.failed, moved.errors, moved.failed_at) == (7, errors, LATER)


def test_a_retry_can_clear_the_timestamps_of_the_end(records: Records) -> None:
    batch = records.add_batch(a_batch(status=BatchStatus.COMPLETED, completed_at=NOW, finalizing_at=NOW))

    records.change_status(
        batch.id, BatchStatus.IN_PROGRESS, now=LATER, completed_at=None, finalizing_at=None, generation=1
    )

    again = records.get_batch(batch.id)
    assert (again.completed_at, again.finalizing_at, again.in_progress_at) == (None, None, LATER)


def test_a_move_keeps_the_lease(records: Records) -> None:
    batch = records.add_batch(a_batch())
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
def test_a_move_with_a_lease_that_is_lost_is_refused_as_such(
    name: str, target: BatchStatus, records: Records
) -> None:
    batch = records.add_batch(a_batch())
    lease = records.claim(batch.id, owner="me", now=NOW, lease_s=60)
    before = records.get_batch(batch.id)

    with pytest.raises(LeaseLost, match=batch.id):
        records.change_status(batch.id, target, now=LATER, lease=LOST[name](lease))

    assert records.get_batch(batch.id) == before


def test_the_lease_of_another_batch_moves_nothing(records: Records) -> None:
    mine, other = records.add_batch(a_batch()), records.add_batch(a_batch())
    lease = records.claim(other.id, owner="me", now=NOW, lease_s=60)

    with pytest.raises(Conflict):
        records.change_status(mine.id, BatchStatus.IN_PROGRESS, now=LATER, lease=lease)

    assert records.get_batch(mine.id) == mine
    assert records.get_batch(other.id).status is BatchStatus.VALIDATING


def test_without_a_lease_a_batch_that_somebody_runs_can_be_moved(records: Records) -> None:
    batch = records.add_batch(a_batch(status=BatchStatus.IN_PROGRESS))
    lease = records.claim(batch.id, owner="runner", now=NOW, lease_s=60)

    records.change_status(batch.id, BatchStatus.CANCELLING, now=LATER)

    assert records.heartbeat(lease, now=LATER) is BatchStatus.CANCELLING


def test_of_two_moves_from_one_state_the_second_is_refused(records: Records) -> None:
    batch = records.add_batch(a_batch(status=BatchStatus.IN_PROGRESS))
    records.change_status(batch.id, BatchStatus.CANCELLING, now=NOW)

    with pytest.raises(Conflict, match="is cancelling and cannot become finalizing"):
        records.change_status(batch.id, BatchStatus.FINALIZING, now=LATER)


def test_a_lease_is_what_its_batch_says(records: Records) -> None:
    batch = records.add_batch(a_batch())

    assert records.claim(batch.id, owner="me", now=NOW, lease_s=60) == Lease(batch.id, "me", 1)
