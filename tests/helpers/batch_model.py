"""A model of files and batches, and checks that a client agrees with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from batchline import Batchline
from batchline.models.batches import BatchResponse, BatchResultItem
from batchline.models.ids import request_id
from batchline.models.status import TERMINAL_STATUSES, BatchStatus
from batchline.storage.records.store import BatchRecord

PENDING = "pending"
GOOD = "completed"
TOKENS = 7
"""Tokens of each response of the controlled upstream."""

ORDER = ("created_at", "in_progress_at", "finalizing_at", "cancelling_at")
ENDS = ("completed_at", "failed_at", "expired_at", "cancelled_at")


@dataclass
class FileModel:
    """An input file: the line of each request, by number from 0; `spoilt` where it does not validate."""

    id: str
    name: str
    lines: list[int]
    content: bytes = field(repr=False)
    is_invalid: bool
    is_there: bool = True
    has_expired: bool = False


@dataclass
class BatchModel:
    """A batch: what became of each request in words, none before it is validated."""

    id: str
    upload: FileModel
    status: str = BatchStatus.VALIDATING
    outcomes: list[str] = field(default_factory=list)
    generation: int = 0
    is_late: bool = False
    has_dead_runner: bool = False
    late_now: set[int] = field(default_factory=set)
    ids: tuple[str | None, str | None] = (None, None)
    seen: tuple[bytes, bytes] = field(default=(b"", b""), repr=False)
    end: BatchResponse | None = field(default=None, repr=False)

    @property
    def is_over(self) -> bool:
        return self.status in TERMINAL_STATUSES

    @property
    def open(self) -> list[int]:
        """The numbers of the requests that are not settled."""
        return [number for number, outcome in enumerate(self.outcomes) if outcome == PENDING]

    @property
    def failed(self) -> list[int]:
        """The numbers of those that can be retried."""
        return [number for number, outcome in enumerate(self.outcomes) if outcome not in {PENDING, GOOD}]

    def request_ids(self, numbers: Sequence[int]) -> list[str]:
        return [request_id(self.id, self.upload.lines[number]) for number in numbers]

    def received_numbers(self, told: Sequence[str]) -> list[int]:
        """The numbers in what an upstream was told of this batch's file, sorted."""
        return sorted(int(number) for name, number in map(str.split, told) if name == self.upload.name)


def check(client: Batchline, known: BatchModel) -> None:
    """The batch is as the model says, in every way that can be asked for."""
    record = client.batches.record(known.id)
    assert (record.status, record.generation) == (known.status, known.generation)
    check_times(record)
    items = list(client.batches.results(known.id))
    check_items(known, items)
    check_counts(known, record)
    check_files(client, known, record)
    if known.is_over:
        shown = client.batches.retrieve(known.id)
        known.end = known.end or shown
        assert shown == known.end
        check_end(known, shown)
    else:
        known.end = None


def check_times(record: BatchRecord) -> None:
    """No timestamp is before the one that it follows, and of the ends there is the one that it came to."""
    times = [time for time in (getattr(record, name) for name in ORDER) if time is not None]
    assert times == sorted(times) or record.generation
    ends = {name: getattr(record, name) for name in ENDS if getattr(record, name) is not None}
    assert set(ends) == ({f"{record.status}_at"} if record.status in TERMINAL_STATUSES else set())
    assert all(end >= max(times[1:], default=record.created_at) for end in ends.values())


def check_items(known: BatchModel, items: Sequence[BatchResultItem]) -> None:
    """Check that there is one result for each request, in input order, with the outcome in the model."""
    assert [item.id for item in items] == known.request_ids(range(len(known.outcomes)))
    told = ["pending" if item.status == "in_progress" else item.status for item in items]
    assert told == [outcome.partition(":")[0] for outcome in known.outcomes]
    for number, (item, outcome) in enumerate(zip(items, known.outcomes, strict=True)):
        assert item.custom_id == f"request-{number}"
        assert (item.error or "").partition(":")[0] == outcome_code(outcome)
        assert (item.response_body is not None) == (outcome == GOOD or outcome.startswith("failed:"))
        if known.upload.is_there or item.input_body is not None:  # of a deletion that died the content is left
            assert item.input_body["messages"][0]["content"] == f"{known.upload.name} {number}"


def outcome_code(outcome: str) -> str:
    """The error code of what became of a request."""
    codes = {"expired": "batch_expired", "cancelled": "batch_cancelled", GOOD: "", PENDING: ""}
    return codes[outcome] if outcome in codes else outcome.partition(":")[2]


def check_counts(known: BatchModel, record: BatchRecord) -> None:
    """The counts add up at the end, and before claim no more than there is."""
    good, bad = known.outcomes.count(GOOD), len(known.failed)
    if known.is_over:
        assert (record.total, record.completed, record.not_completed) == (good + bad, good, bad)
        assert record.unanswered == sum(outcome in {"expired", "cancelled"} for outcome in known.outcomes)
    else:
        assert record.total == len(known.outcomes)
        assert record.completed + record.failed <= record.total


def check_files(client: Batchline, known: BatchModel, record: BatchRecord) -> None:
    """Both files hold their requests in input order; what was once read of them stays until the end."""
    ids = (record.output_file_id, record.error_file_id)
    for new, old in zip(ids, known.ids, strict=True):
        assert new == old or new is None or old is None
    contents = tuple(
        b"".join(client.files.content(each)) if each else b""
        for each in (record.output_file_id, record.error_file_id)
    )
    good = [known.outcomes[number] == GOOD for number in range(len(known.outcomes))]
    if known.is_over:
        expected = [number for number in range(len(good)) if good[number]], known.failed
        assert (_numbers(contents[0]), _numbers(contents[1])) == expected
        assert (ids[0] is None, ids[1] is None) == (not contents[0], not contents[1])
        sizes = tuple(client.files.retrieve(each).bytes if each else 0 for each in ids)
        assert sizes == (len(contents[0]), len(contents[1]))
        assert b"".join(_kept(known, contents)) == b"".join(contents)
    elif known.generation:
        assert contents == known.seen
    else:
        assert all(new.startswith(old) for new, old in zip(contents, known.seen, strict=True))
        settled = sorted(_numbers(contents[0]) + _numbers(contents[1]))
        assert settled == list(range(len(settled)))
        assert not set(settled) & set(known.open)
    known.ids, known.seen = ids, contents


def _kept(known: BatchModel, contents: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """The contents, whose beginnings are what a running first generation showed."""
    if not known.generation:
        assert all(new.startswith(old) for new, old in zip(contents, known.seen, strict=True))
    return contents


def _numbers(content: bytes) -> list[int]:
    return [int(json.loads(line)["custom_id"].rpartition("-")[2]) for line in content.splitlines()]


def check_end(known: BatchModel, shown: BatchResponse) -> None:
    """The analytics are over what completed, and a batch that failed says why."""
    good = known.outcomes.count(GOOD)
    if known.outcomes:
        assert shown.analytics is not None
        assert (shown.analytics.total_requests, shown.analytics.total_tokens) == (good, TOKENS * good)
    assert (shown.errors is not None) == (known.status == BatchStatus.FAILED)
