"""The operations in any order, with deaths in between, against the contract's invariants.

`BATCHLINE_TEST_EXAMPLES` says how many lives are tried (default 25), `BATCHLINE_TEST_STEPS` how long each is.
"""

import os
import time
from collections.abc import Iterator

import pytest
from helpers.batch_model import PENDING, BatchModel, check
from helpers.batch_state_machine import WHICH, BatchStateMachine, final_status, pick
from helpers.kill_points import expire_lease, make_deletions_due, start_run_process
from helpers.polling import until
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    invariant,
    rule,
    run_state_machine_as_test,
)

from batchline.client.housekeeping import MaintenanceItem, run_housekeeping
from batchline.models.errors import BatchlineError
from batchline.models.settings import load_settings
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.steps import segment_writer
from batchline.storage.records.store import upgrade_database

pytestmark = [pytest.mark.system, pytest.mark.timeout(3_600)]

EXAMPLES = int(os.environ.get("BATCHLINE_TEST_EXAMPLES", "25"))
STEPS = int(os.environ.get("BATCHLINE_TEST_STEPS", "25"))

WRITES = st.integers(0, 45)
"""Number of writes before a failure: a run of three chunks makes some forty."""


class FailingBatchStateMachine(BatchStateMachine):
    """Adds failures between operations, housekeeping, readers, and the invariants."""

    # Deaths

    @rule(which=WHICH, writes=WRITES)
    def die_running(self, which: int, writes: int) -> None:
        if (known := pick(self.live, which)) is None:
            self.use_fallback()
            return
        client = self.failing_client_after(writes)
        self.controlled.reset()
        try:
            client.batches.run(known.id)
        except BatchlineError as error:
            note(f"died: {error}")
            self.has_died(known)
        else:
            self.has_run(known)

    @rule(which=WHICH, most=st.integers(0, 5))
    def be_killed_with_answers_saved(self, which: int, most: int) -> None:
        """A real `kill -9`, as soon as all that was answered is on storage: nothing of it is sent again."""
        if (known := pick(self.sending, which)) is None:
            self.use_fallback()
            return
        before = len(known.outcomes) - len(known.open) if known.outcomes else 0
        all_open = len(known.open or known.upload.lines)
        most = min(most, all_open - 1)
        self.controlled.reset()
        self.controlled.answer_first(most)
        process = start_run_process(self.settings, known.id)
        until(lambda: len(self.controlled.prompts) > most and self.settled(known) == before + most)
        process.kill()
        process.join()
        self.controlled.answer_all()
        self.has_died(known)
        assert len(known.open) == all_open - most

    def settled(self, known: BatchModel) -> int:
        items = self.client.batches.results(known.id)
        return sum(item.status not in {"pending", "in_progress"} for item in items)

    @rule(which=WHICH, after_s=st.floats(0.0, 0.15))
    def be_killed(self, which: int, after_s: float) -> None:
        """A real `kill -9` at any moment."""
        if (known := pick(self.live, which)) is None:
            self.use_fallback()
            return
        self.is_untidy = True
        self.controlled.reset()
        process = start_run_process(self.settings, known.id)
        until(lambda: self.engine.records.get_batch(known.id).epoch or not process.is_alive())
        time.sleep(after_s)
        process.kill()
        process.join()
        self.has_died(known)

    def has_died(self, known: BatchModel, *, is_alone: bool = True) -> None:
        """Note what a runner has left, which is a part of what it was to do.

        It `is_alone` where nothing else was sent of the same file.
        """
        expire_lease(self.engine, known.id)
        record = self.engine.records.get_batch(known.id)
        known.has_dead_runner = record.lease_owner is not None
        sent = known.received_numbers(self.controlled.prompts)
        if record.in_progress_at is not None and not known.outcomes:
            self.has_been_validated(known)
        was_cancelling = known.status == BatchStatus.CANCELLING
        assert set(sent) <= set(known.open) or not is_alone
        for number, item in enumerate(self.client.batches.results(known.id)):
            if known.outcomes[number] != PENDING or item.status in {"pending", "in_progress"}:
                continue
            if number in sent:
                known.outcomes[number] = self.outcome(number)
            else:
                known.outcomes[number] = "cancelled" if was_cancelling else "expired"
                assert was_cancelling or known.is_late
                known.late_now |= set() if was_cancelling else {number}
        if record.status in TERMINAL_STATUSES:
            assert known.open == []
            known.status = final_status(known)
        else:
            assert record.status in {known.status, "in_progress", "finalizing"}
            assert record.status == known.status or not was_cancelling
            assert record.status != "finalizing" or not known.open
            known.status = record.status

    @rule(which=WHICH, writes=st.integers(0, 8))
    def die_retrying(self, which: int, writes: int) -> None:
        if (known := pick(self.retriable, which)) is None:
            self.use_fallback()
            return
        try:
            self.failing_client_after(writes).batches.retry(known.id, via=None)
        except BatchlineError as error:
            note(f"died: {error}")
        if self.engine.records.get_batch(known.id).generation > known.generation:
            self.has_been_retried(known, known.failed)

    @rule(which=WHICH, writes=st.integers(0, 20))
    def die_deleting(self, which: int, writes: int) -> None:
        if (known := pick(self.batches, which)) is None:
            self.use_fallback()
            return
        try:
            self.failing_client_after(writes).batches.delete(known.id)
        except BatchlineError as error:
            note(f"died: {error}")
        if not self.exists(self.engine.records.get_batch, known.id):
            self.has_been_deleted(known)

    @rule(which=WHICH, writes=st.integers(0, 4))
    def die_cancelling(self, which: int, writes: int) -> None:
        if (known := pick(self.cancellable, which)) is None:
            self.use_fallback()
            return
        try:
            self.failing_client_after(writes).batches.cancel(known.id)
        except BatchlineError as error:
            note(f"died: {error}")
        expire_lease(self.engine, known.id)
        record = self.engine.records.get_batch(known.id)
        assert record.status in {known.status, "cancelling", "cancelled"}
        known.status, known.has_dead_runner = record.status, record.lease_owner is not None

    # Housekeeping

    @rule(is_later=st.booleans())
    def keep_house(self, is_later: bool) -> None:
        if is_later:
            make_deletions_due(self.engine)
            self.is_untidy = True
        wanted = self.expected_chores()
        found = list(run_housekeeping(self.client))
        assert {(chore.kind, chore.subject) for chore in self.without_remains(found)} == wanted
        assert not any(chore.done for chore in found)
        self.controlled.reset()
        done = list(run_housekeeping(self.client, apply=True))
        assert [chore for chore in done if not chore.done] == []
        self.has_been_kept(wanted)

    @rule(writes=st.integers(0, 60))
    def die_keeping_house(self, writes: int) -> None:
        late = {
            each.id for each in self.batches if not each.is_over and ("resume", each.id) in self.expected_chores()
        }
        self.controlled.reset()
        list(self.keep_house_until(writes))
        for known in self.batches:
            if known.id in late:
                self.has_died(known, is_alone=False)
        for upload in self.uploads:
            upload.is_there = self.exists(self.client.files.retrieve, upload.id)

    def keep_house_until(self, writes: int) -> Iterator[MaintenanceItem]:
        client = self.failing_client_after(writes)
        try:
            yield from run_housekeeping(client, apply=True)
        except BatchlineError as error:
            note(f"died: {error}")

    def without_remains(self, found: list[MaintenanceItem]) -> list[MaintenanceItem]:
        """Return the chores except those that clean up after failures; without a failure there must be none."""
        remains = [chore for chore in found if chore.kind in {"delete_objects", "discard_unfinished"}]
        assert remains == [] or self.is_untidy
        return [chore for chore in found if chore not in remains]

    def expected_chores(self) -> set[tuple[str, str]]:
        resumed = {
            ("resume", each.id)
            for each in self.batches
            if not each.is_over
            and (each.has_dead_runner or each.is_late or each.status in {"finalizing", "cancelling"})
        }
        deleted = {
            ("delete_file", each.id)
            for each in self.uploads
            if each.is_there and each.has_expired and not self.is_needed(each)
        }
        return resumed | deleted

    def has_been_kept(self, wanted: set[tuple[str, str]]) -> None:
        self.is_untidy = False
        for upload in self.uploads:
            upload.is_there = upload.is_there and ("delete_file", upload.id) not in wanted
        sent: list[str] = []
        for known in self.batches:
            if ("resume", known.id) in wanted:
                sent += [f"{known.upload.name} {number}" for number in self.has_ended(known)]
        assert sorted(self.controlled.prompts) == sorted(sent)
        left = self.without_remains(list(run_housekeeping(self.client)))
        assert {(chore.kind, chore.subject) for chore in left} == self.expected_chores()

    # Reading

    @rule(
        which=WHICH,
        skip=st.integers(0, 10),
        limit=st.none() | st.integers(1, 10),
        search=st.none() | st.sampled_from(["REQUEST", "1", "request-2", "nobody"]),
        status=st.none() | st.sampled_from(["pending", "completed", "failed", "expired", "cancelled"]),
    )
    def read_results(
        self, which: int, skip: int, limit: int | None, search: str | None, status: str | None
    ) -> None:
        if (known := pick(self.batches, which)) is None:
            self.use_fallback()
            return
        wanted = [
            f"request-{number}"
            for number, outcome in enumerate(known.outcomes)
            if (status is None or outcome.partition(":")[0] == status)
            and (search or "").lower() in f"request-{number}"
        ]
        query = {"skip": skip, "limit": limit, "search": search, "status": status}
        found = [item.custom_id for item in self.client.batches.results(known.id, **query)]
        assert found == wanted[skip:][:limit]

    @rule(which=WHICH, limit=st.integers(1, 3))
    def list_batches(self, which: int, limit: int) -> None:
        newest_first = [each.id for each in reversed(self.batches)]
        assert [each.id for each in self.client.batches.list(limit=limit)] == newest_first
        ended = [each.id for each in reversed(self.batches) if each.status == "completed"]
        assert [each.id for each in self.client.batches.list(limit=limit, status="completed")] == ended
        if self.batches:
            if (known := pick(self.batches, which)) is None:
                return
            assert [each.id for each in self.client.batches.list(search=known.id[9:].upper())] == [known.id]
            same = [each.id for each in reversed(self.batches) if each.upload is known.upload]
            assert [each.id for each in self.client.batches.list(search=f"{known.upload.name}.jsonl")] == same

    # What holds at any time

    @invariant()
    def every_batch_is_as_it_should_be(self) -> None:
        for known in self.batches:
            check(self.client, known)

    @invariant()
    def files_are_those_that_are_known(self) -> None:
        own = {each for known in self.batches for each in known.ids if each is not None}
        there = {each.id for each in self.uploads if each.is_there}
        assert {each.id for each in self.client.files.list(limit=2)} == own | there
        for each in self.uploads:
            if each.is_there:
                assert b"".join(self.client.files.content(each.id)) == each.content

    @invariant()
    def every_object_is_owned_or_doomed(self) -> None:
        owned = [f"files/{each.id}/" for each in self.uploads if each.is_there]
        owned += [f"batches/{each.id}/" for each in self.batches]
        owned += [each.prefix for each in self.engine.records.due_deletions(now=2**40)]
        keys = [info.key for info in self.engine.store.list_objects("")]
        assert [key for key in keys if not key.startswith(tuple(owned))] == []


def test_batch_operations_in_any_order_keep_contract_invariants(controlled, tmp_path, monkeypatch):
    monkeypatch.setattr(segment_writer, "STORAGE_PATIENCE_S", 0.0)
    monkeypatch.setattr(segment_writer, "STORAGE_PAUSE_S", 0.01)
    upgrade_database(load_settings(database_url=f"sqlite:///{tmp_path / 'empty.db'}"))
    machine = type("Machine", (FailingBatchStateMachine,), {"controlled": controlled, "home": tmp_path})

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize="BATCHLINE_TEST_EXAMPLES" not in os.environ,
            database=None,
            print_blob=True,
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
