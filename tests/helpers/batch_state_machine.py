"""A state machine: files and batches under the operations, against a model of what should become of them."""

import gzip
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
)

from batchline import Batchline
from batchline.engine.lease import active_lease
from batchline.engine.services import Services
from batchline.models.batches import BatchResponse
from batchline.models.errors import BatchlineError, Conflict, InvalidInput, NotFound
from batchline.models.settings import Settings, load_settings
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.models.upstreams import Upstream
from batchline.storage.objects.select import open_objects
from batchline.storage.records.store import open_records
from helpers.batch_model import GOOD, PENDING, BatchModel, FileModel
from helpers.concurrency import in_threads
from helpers.controlled_upstream import ControlledUpstream
from helpers.kill_points import failing_client
from helpers.polling import until
from helpers.record_edits import change_batch, change_file
from helpers.request_files import chat_line

MAX_FILES, MAX_BATCHES = 3, 4
TIMEOUT_S = 10.0
T = TypeVar("T")

CODES = {200: GOOD, 400: "failed:invalid_request", 500: "failed:server_error"}
REPLY_RULES = st.tuples(st.sampled_from([200, 400, 500]), st.integers(1, 4))
"""The status of the response to every n-th request."""

WHICH = st.integers(0, 11)
"""Of those that there are, by their number modulo how many there are: none of what a strategy draws may depend on
what came of a race or a kill."""


class BatchStateMachine(RuleBasedStateMachine):
    """A client with its store and its records, a simulated upstream, and what all of it should be."""

    controlled: ControlledUpstream
    home: Path
    numbers = iter(range(10**9))

    def __init__(self) -> None:
        super().__init__()
        place = self.home / f"life-{next(self.numbers)}"
        place.mkdir()
        shutil.copy(self.home / "empty.db", place / "records.db")
        self.settings = settings_for(self.controlled, place)
        services = Services(
            settings=self.settings, store=open_objects(self.settings), records=open_records(self.settings)
        )
        self.client = Batchline(services=services)
        self.engine = services
        self.uploads: list[FileModel] = []
        self.batches: list[BatchModel] = []
        self.is_untidy = False
        self.set_reply_rule(200, 1)

    def teardown(self) -> None:
        self.client.close()
        self.engine.records.close()
        shutil.rmtree(self.settings.home)

    @initialize(count=st.integers(1, 9), reply_rule=REPLY_RULES, is_over=st.sampled_from([True, False, True]))
    def create_first_batch(self, count: int, reply_rule: tuple[int, int], is_over: bool) -> None:
        """A batch to begin with, perhaps one that has ended with failures."""
        self.set_reply_rule(*reply_rule)
        self.store_upload(count, blank={1})
        [upload] = self.uploads
        known = BatchModel(self.client.batches.create(input_file_id=upload.id, via=None).id, upload)
        self.batches.append(known)
        if is_over:
            self.set_reply_rule(400, reply_rule[1])
            self.controlled.reset()
            self.client.batches.run(known.id)
            self.has_run(known)
            self.set_reply_rule(*reply_rule)

    def use_fallback(self) -> None:
        """Do something that gives the next rule an object to act on."""
        there = [each for each in self.uploads if each.is_there]
        if self.live:
            self.set_reply_rule(400, 2)
            self.controlled.reset()
            self.client.batches.run(self.live[0].id)
            self.has_run(self.live[0])
        elif there and len(self.batches) < MAX_BATCHES:
            batch = self.client.batches.create(input_file_id=there[-1].id, via=None)
            self.batches.append(BatchModel(batch.id, there[-1]))
        elif there:
            self.client.batches.delete(self.batches[0].id)
            self.has_been_deleted(self.batches[0])
        else:
            self.store_upload(7, blank={2})

    # The upstream

    def set_reply_rule(self, status: int, every: int) -> None:
        self.status, self.every = status, every
        self.controlled.status_rule = self.answer

    def answer(self, number: int) -> int:
        return self.status if number % self.every == 0 else 200

    def outcome(self, number: int) -> str:
        return CODES[self.answer(number)]

    # Files

    @rule(
        count=st.integers(0, 9),
        blank=st.sets(st.integers(0, 8), max_size=3),
        is_compressed=st.booleans(),
        is_invalid=st.sampled_from([False, False, False, True]),
        dies_at=st.none() | st.integers(0, 3),
    )
    def upload(
        self, count: int, blank: set[int], is_compressed: bool, is_invalid: bool, dies_at: int | None
    ) -> None:
        if sum(each.is_there for each in self.uploads) < MAX_FILES:
            self.store_upload(count, blank, is_compressed=is_compressed, is_invalid=is_invalid, dies_at=dies_at)

    def store_upload(
        self,
        count: int,
        blank: set[int],
        *,
        is_compressed: bool = False,
        is_invalid: bool = False,
        dies_at: int | None = None,
    ) -> None:
        name = f"f{next(self.numbers)}"
        rows: list[str] = []
        lines: list[int] = []
        for number in range(count):
            rows += [""] * (number in blank)
            lines.append(len(rows) + 1)
            rows.append(chat_line(number, f"{name} {number}"))
        rows += ["{}"] * is_invalid
        content = "".join(f"{row}\n" for row in rows).encode()
        sent = (f"{name}.jsonl.gz", gzip.compress(content)) if is_compressed else (f"{name}.jsonl", content)
        client = self.client if dies_at is None else self.failing_client_after(dies_at)
        before = {file.id for file in self.client.files.list()}
        try:
            stored = client.files.create(file=sent)
        except BatchlineError:
            assert dies_at is not None
            assert {file.id for file in self.client.files.list()} == before
            return
        assert (stored.bytes, stored.filename, stored.purpose) == (len(content), f"{name}.jsonl", "batch")
        self.uploads.append(FileModel(stored.id, name, lines, content, is_invalid or not count))

    @rule(which=WHICH, dies_at=st.none() | st.integers(0, 3))
    def delete_upload(self, which: int, dies_at: int | None) -> None:
        if (upload := pick([each for each in self.uploads if each.is_there], which)) is None:
            self.use_fallback()
            return
        client = self.client if dies_at is None else self.failing_client_after(dies_at)
        try:
            client.files.delete(upload.id)
        except Conflict:
            assert self.is_needed(upload)
            return
        except BatchlineError:
            assert dies_at is not None
        else:
            assert not self.is_needed(upload)
        upload.is_there = self.exists(self.client.files.retrieve, upload.id)

    @rule(which=WHICH)
    def expire_upload(self, which: int) -> None:
        if (upload := pick(self.uploads, which)) is None:
            return
        change_file(self.engine.records, upload.id, expires_at=int(time.time()) - 5)
        upload.has_expired = True

    def is_needed(self, upload: FileModel) -> bool:
        return any(each.upload is upload and not each.is_over for each in self.batches)

    @staticmethod
    def exists(find: Callable[[str], object], each: str) -> bool:
        try:
            find(each)
        except NotFound:
            return False
        return True

    # Batches

    @rule(which=WHICH, reply_rule=REPLY_RULES)
    def create(self, which: int, reply_rule: tuple[int, int]) -> None:
        if len(self.batches) >= MAX_BATCHES:
            self.use_fallback()
            return
        self.set_reply_rule(*reply_rule)
        if (upload := pick([each for each in self.uploads if each.is_there], which)) is None:
            self.use_fallback()
            return
        batch = self.client.batches.create(
            input_file_id=upload.id, metadata={"of": f"Team-{len(self.batches) % 2}"}, via=None
        )
        assert (batch.status, batch.input_file_id) == ("validating", upload.id)
        self.batches.append(BatchModel(batch.id, upload))

    @property
    def live(self) -> list[BatchModel]:
        """The batches that are not over."""
        return [each for each in self.batches if not each.is_over]

    @property
    def cancellable(self) -> list[BatchModel]:
        """The batches that can be cancelled and are not as yet."""
        return [each for each in self.batches if each.status in {"validating", "in_progress"}]

    @property
    def sending(self) -> list[BatchModel]:
        """The batches that would send something if they ran."""
        return [
            each
            for each in self.live
            if not each.is_late
            and (bool(each.open) if each.outcomes else each.status == "validating" and not each.upload.is_invalid)
            and each.status != BatchStatus.CANCELLING
        ]

    @property
    def retriable(self) -> list[BatchModel]:
        """The batches that can be retried."""
        return [each for each in self.batches if self.can_be_retried(each)]

    @rule(which=WHICH)
    def run(self, which: int) -> None:
        if (known := pick(self.batches, which)) is None:
            self.use_fallback()
            return
        self.controlled.reset()
        self.client.batches.run(known.id)
        self.has_run(known)

    def has_run(self, known: BatchModel) -> None:
        """Note that the batch has gone on to its end, and that exactly what was open was sent."""
        assert known.received_numbers(self.controlled.prompts) == self.has_ended(known)

    def has_ended(self, known: BatchModel) -> list[int]:
        """Note that the batch has gone on to its end; the numbers of what was to be sent for that."""
        if known.is_over:
            return []
        known.has_dead_runner = False
        if not known.outcomes:
            self.has_been_validated(known)
        fate = {BatchStatus.CANCELLING: "cancelled"}.get(known.status, "expired" if known.is_late else None)
        sent = [] if fate else known.open
        for number in known.open:
            known.outcomes[number] = fate or self.outcome(number)
            if fate == "expired":
                known.late_now.add(number)
        known.status = final_status(known)
        return sent

    def has_been_validated(self, known: BatchModel) -> None:
        if known.status == BatchStatus.VALIDATING and not known.is_late and not known.upload.is_invalid:
            known.outcomes = [PENDING] * len(known.upload.lines)

    @rule(which=WHICH)
    def close_window(self, which: int) -> None:
        if (known := pick(self.live, which)) is None:
            self.use_fallback()
            return
        change_batch(self.engine.records, known.id, expires_at=int(time.time()) - 1)
        known.is_late = True

    @rule(which=WHICH)
    def cancel(self, which: int) -> None:
        if (known := pick(self.batches, which)) is None:
            self.use_fallback()
            return
        if known.status in {"finalizing", *TERMINAL_STATUSES} - {"cancelled"}:
            with pytest.raises(Conflict):
                self.client.batches.cancel(known.id)
            return
        was = known.status
        batch = self.client.batches.cancel(known.id)
        if was == BatchStatus.VALIDATING:
            known.status = "cancelled"
            known.has_dead_runner = False
        elif was == BatchStatus.IN_PROGRESS:
            known.status = "cancelling"
        assert batch.status == known.status

    @rule(which=WHICH, most=st.integers(1, 5))
    def cancel_while_it_runs(self, which: int, most: int) -> None:
        if (known := pick(self.sending, which)) is None:
            self.use_fallback()
            return
        most = min(most, len(known.open or known.upload.lines))
        self.controlled.reset()
        self.controlled.answer_first(most - 1)
        self.client.batches.resume(known.id)
        until(lambda: len(self.controlled.prompts) >= most)
        assert self.client.batches.cancel(known.id).status == "cancelling"
        until(lambda: (hold := active_lease(known.id)) is not None and hold.session.stop_reason is not None)
        told = len(self.controlled.prompts)
        self.controlled.answer_all()
        self.client.batches.wait(known.id, timeout_s=TIMEOUT_S, poll_interval_s=0.01)
        until(lambda: not self.client.runner.is_running(known.id))
        assert len(self.controlled.prompts) == told
        self.has_been_cancelled(known)

    def has_been_cancelled(self, known: BatchModel) -> None:
        """Note that what was sent has its answer, and the rest is cancelled."""
        known.outcomes = known.outcomes or [PENDING] * len(known.upload.lines)
        sent = known.received_numbers(self.controlled.prompts)
        assert set(sent) <= set(known.open)
        assert len(sent) == len(set(sent))
        for number in known.open:
            known.outcomes[number] = self.outcome(number) if number in sent else "cancelled"
        known.status, known.has_dead_runner = "cancelled", False

    @rule(which=WHICH)
    def retry_what_cannot_be(self, which: int) -> None:
        if (known := pick([each for each in self.batches if each not in self.retriable], which)) is None:
            self.use_fallback()
            return
        with pytest.raises((Conflict, NotFound)):
            self.client.batches.retry(known.id, via=None)

    @rule(which=WHICH, some=st.none() | st.sets(st.integers(0, 8), min_size=1), reply_rule=REPLY_RULES)
    def retry(self, which: int, some: set[int] | None, reply_rule: tuple[int, int]) -> None:
        if (known := pick(self.retriable, which)) is None:
            self.use_fallback()
            return
        self.set_reply_rule(*reply_rule)
        numbers = self.of_those(known, some)
        if some is None:
            batch = self.client.batches.retry(known.id, via=None)
        else:
            batch = self.client.batches.retry_requests(known.id, known.request_ids(numbers), via=None)
        assert batch.status == "in_progress"
        self.has_been_retried(known, numbers)

    def can_be_retried(self, known: BatchModel) -> bool:
        return known.is_over and bool(known.failed) and known.upload.is_there

    @staticmethod
    def of_those(known: BatchModel, some: set[int] | None) -> list[int]:
        return known.failed if some is None else sorted({known.failed[each % len(known.failed)] for each in some})

    def has_been_retried(self, known: BatchModel, numbers: list[int]) -> None:
        for number in numbers:
            known.outcomes[number] = PENDING
        known.late_now.clear()
        known.status, known.is_late, known.has_dead_runner = "in_progress", False, False
        known.generation += 1

    @rule(which=WHICH, wrong=st.sampled_from(["unknown", "good", "another's", "custom", "blank", "plus"]))
    def retry_wrong_ids(self, which: int, wrong: str) -> None:
        if (known := pick(self.retriable, which)) is None:
            self.use_fallback()
            return
        right = known.request_ids(known.failed)
        good = known.request_ids([number for number, each in enumerate(known.outcomes) if each == GOOD])
        free = [line for line in range(1, 30) if line not in known.upload.lines]
        ids = {
            "unknown": f"req-{known.id[6:]}-{free[-1]}",
            "blank": f"req-{known.id[6:]}-{free[0]}",
            "good": good[0] if good else "req-",
            "another's": right[0].replace(known.id[6:], "0" * 32),
            "custom": "request-of-nobody",
            "plus": right[0].replace(f"{known.id[6:]}-", f"{known.id[6:]}-0"),
        }
        with pytest.raises(InvalidInput, match=ids[wrong].replace("+", ".")):
            self.client.batches.retry_requests(known.id, [*right, ids[wrong]], via=None)

    @rule(which=WHICH)
    def retry_twice_at_once(self, which: int) -> None:
        if (known := pick(self.retriable, which)) is None:
            self.use_fallback()
            return
        done = in_threads(2, lambda _: self.client.batches.retry(known.id, via=None))
        assert sorted(type(each).__name__ for each in done) == [BatchResponse.__name__, Conflict.__name__]
        self.is_untidy = True  # the copies that the one that lost has made
        self.has_been_retried(known, known.failed)

    @rule(which=WHICH)
    def run_twice_at_once(self, which: int) -> None:
        if (known := pick(self.live, which)) is None:
            self.use_fallback()
            return
        self.controlled.reset()
        done = in_threads(2, lambda _: self.client.batches.run(known.id))
        assert {type(each) for each in done} <= {BatchResponse, Conflict}
        self.has_run(known)

    @rule(which=WHICH)
    def delete(self, which: int) -> None:
        if (known := pick(self.batches, which)) is None:
            self.use_fallback()
            return
        self.client.batches.delete(known.id)
        self.has_been_deleted(known)
        assert self.engine.store.list_objects(f"batches/{known.id}/") == []

    def has_been_deleted(self, known: BatchModel) -> None:
        self.batches.remove(known)
        for find, each in (
            (self.client.batches.retrieve, known.id),
            *((self.client.files.retrieve, i) for i in known.ids),
        ):
            assert each is None or not self.exists(find, each)

    def failing_client_after(self, writes: int) -> Batchline:
        """A client that dies at the write behind so many."""
        self.is_untidy = True
        client, _ = failing_client(self.engine, writes)
        return client


def pick(some: Sequence[T], which: int) -> T | None:
    """Return one of the items, or None if there is none."""
    return some[which % len(some)] if some else None


def final_status(known: BatchModel) -> str:
    """The state in which the batch ends, its requests all settled."""
    if known.status == BatchStatus.CANCELLING:
        return "cancelled"
    if known.late_now or (known.is_late and not known.outcomes):
        return "expired"
    return "completed" if GOOD in known.outcomes else "failed"


def settings_for(controlled: ControlledUpstream, place: Path) -> Settings:
    upstream = Upstream(base_url=controlled.base_url, max_attempts=1, max_in_flight=2)
    return load_settings(
        home=place,
        database_url=f"sqlite:///{place / 'records.db'}",
        upstreams=[upstream],
        chunk_requests=3,
        flush_interval_s=0.02,
        lease_s=4.0,
        grace_s=10.0,
    )
