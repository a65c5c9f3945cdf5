"""Sends a chunk's requests and leaves a part behind: the step that a task maps over chunks."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from threading import BoundedSemaphore
from typing import Protocol

import msgspec

from batchline.models.errors import InvalidInput, StorageFault
from batchline.models.ids import request_prefix
from batchline.models.lines import result_line
from batchline.models.plan import Chunk
from batchline.steps.figures import Figures, figures_of
from batchline.steps.parts import Part, drop, part_of, segments_of, write_part
from batchline.steps.requests import calls, is_heavy, stretches
from batchline.steps.spool import Spool
from batchline.steps.unread import ReadableCalls, end_without_input, ending_of, unread_lines
from batchline.storage import layout
from batchline.storage.objects import ObjectStore
from batchline.upstream.answers import Answer, Call
from batchline.upstream.run import Feed, Run

log = logging.getLogger(__name__)

STORAGE_PATIENCE_S = 60.0
"""How long a chunk holds answers that storage will not take, sending nothing new, before it gives up."""


STORAGE_PAUSE_S = 0.25
MOST_STORAGE_PAUSE_S = 5.0


class ChunkOrder(msgspec.Struct, frozen=True, kw_only=True):
    """All that a worker must be told to send a chunk; small, plain and without secrets.

    `fresh` says that no earlier run has left anything of it.
    """

    batch_id: str
    generation: int
    epoch: int
    endpoint: str
    input_key: str
    input_bytes: int
    model: str | None
    chunk: Chunk
    fresh: bool = False


class ChunkResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a chunk ended; `finished` is false where the run was interrupted before all was settled."""

    chunk: int
    completed: int
    failed: int
    finished: bool


class Hold(Protocol):
    """What sending a chunk needs of the process's hold on the batch."""

    store: ObjectStore
    run: Run
    flush_interval_s: float
    flush_bytes: int
    sender: str
    """By what name this process's parts are told from those of others that send for the same runner."""

    heavy: BoundedSemaphore
    """Held while a chunk with a very long line is sent, of which a batch may have few open."""

    def upstream_of(self, model: str | None) -> str:
        """The name of the upstream that serves the model."""

    def check(self) -> None:
        """Raise `LeaseLost` once another runner has the batch, or may have it."""

    def recovered(self, figures: list[Figures]) -> None:
        """Count requests that an earlier run had settled."""

    def is_first_try(self, chunk: int) -> bool:
        """Whether the chunk has not been tried under this hold before; asking makes it so."""

    def note(self, chunk: int, completed: int, failed: int) -> None:
        """Hear of requests of the chunk that are settled, those that an earlier try had settled included."""


def send_chunk(order: ChunkOrder, hold: Hold) -> ChunkResult:
    """Settle every request of the chunk, write its part, and say how it ended.

    Safe to repeat: a finished part is left as it is, and of an unfinished one only requests without a saved
    answer are sent. Raises `InputChanged`, `LeaseLost` or `StorageFault`; what was answered before is saved.
    """
    keys = layout.part_keys(order.batch_id, order.generation, order.chunk.index, order.epoch, sender=hold.sender)
    first_try = hold.is_first_try(order.chunk.index)
    untouched = order.fresh and first_try
    if not untouched and hold.store.exists(keys.figures):
        part = part_of(hold.store, keys.figures)
        hold.note(part.chunk, part.completed, part.failed)
        return _result(part)
    with hold.heavy if is_heavy(order.chunk) else nullcontext(), Spool() as spool:
        old = [] if untouched else _recover(order, hold, spool, counted=not first_try)
        saver = _Saver(order, hold, spool)
        _send(order, hold, spool, saver)
        hold.check()
        if len(spool) < order.chunk.requests:
            saver.flush()
            return _unfinished(order, spool)
        part = saver.finish(keys)
    drop(hold.store, [*old, *saver.keys])
    return _result(part)


def _result(part: Part) -> ChunkResult:
    return ChunkResult(chunk=part.chunk, completed=part.completed, failed=part.failed, finished=True)


def _unfinished(order: ChunkOrder, spool: Spool) -> ChunkResult:
    completed = spool.completed
    return ChunkResult(chunk=order.chunk.index, completed=completed, failed=len(spool) - completed, finished=False)


def _recover(order: ChunkOrder, hold: Hold, spool: Spool, *, counted: bool) -> list[str]:
    """Take in what earlier runs, or a `counted` try of this one, saved of the chunk; keys of their segments."""
    keys = []
    for key, segment in segments_of(hold.store, order.batch_id, order.generation, order.chunk.index):
        found = spool.recover(segment)
        if not counted:
            hold.recovered(found)
        _note(order, hold, found)
        keys.append(key)
    if keys:
        log.info(
            "chunk %d: %d of %d requests were answered before",
            order.chunk.index,
            len(spool),
            order.chunk.requests,
        )
    return keys


def _send(order: ChunkOrder, hold: Hold, spool: Spool, saver: "_Saver") -> None:
    """Feed the caller with the requests that have no answer yet, and spool the answers."""
    prefix = request_prefix(order.batch_id)
    todo = ReadableCalls(_calls(order, hold, spool))
    with hold.run.open_feed(order.chunk.index) as feed:
        while not feed.drained:
            if saver.failing_since is None:
                _fill(feed, todo)
            else:
                time.sleep(STORAGE_PAUSE_S)
            answers = feed.wait(saver.next_flush_in_s())
            if answers:
                lines = [_line(prefix, answer) for answer in answers]
                rows = [figures_of(answer) for answer in answers]
                spool.add(rows, lines)
                _note(order, hold, rows)
            saver.tend()
            hold.check()
    if todo.error is not None:
        saver.flush()
        stop = end_without_input(hold.run, todo.error)
        rows, lines = unread_lines(order.chunk, spool, prefix=prefix, stop=stop)
        spool.add(rows, lines)
        _note(order, hold, rows)


def _note(order: ChunkOrder, hold: Hold, rows: Sequence[Figures]) -> None:
    completed = sum(row.ok for row in rows)
    hold.note(order.chunk.index, completed, len(rows) - completed)


def _fill(feed: Feed, todo: Iterator[list[Call]]) -> None:
    while feed.hungry:
        block = next(todo, None)
        if block is None:
            feed.end()
            return
        feed.put(block)


def _calls(order: ChunkOrder, hold: Hold, spool: Spool) -> Iterator[list[Call]]:
    def upstream_of(model: str | None) -> str:
        try:
            return hold.upstream_of(model)
        except InvalidInput:
            if ending_of(hold.run) is None:
                raise
            return ""  # the run ends the request unsent, so it needs no upstream

    only = order.chunk.only
    done = spool if only is None else _Settled(frozenset(only), spool)
    for first, lines in stretches(hold.store, order.input_key, order.chunk, file_bytes=order.input_bytes):
        yield calls(
            enumerate(lines, first),
            endpoint=order.endpoint,
            only_model=order.model,
            upstream_of=upstream_of,
            done=done,
        )


class _Settled:
    """The lines that a retry does not send: all but the ones that it is for, and of those what is spooled."""

    def __init__(self, only: frozenset[int], spool: Spool) -> None:
        self._only = only
        self._spool = spool

    def __contains__(self, line: object) -> bool:
        return line not in self._only or line in self._spool


def _line(prefix: str, answer: Answer) -> bytes:
    call = answer.call
    return result_line(
        request_id=f"{prefix}{call.line}",
        custom_id=call.custom_id,
        status_code=answer.status_code,
        answer_id=answer.request_id,
        body=answer.body,
        error_code=answer.code,
        message=answer.message,
    )


class _Saver:
    """Saves a chunk's spool as segments, every flush interval or so many bytes."""

    def __init__(self, order: ChunkOrder, hold: Hold, spool: Spool) -> None:
        self.keys: list[str] = []
        self.failing_since: float | None = None
        self._order = order
        self._hold = hold
        self._spool = spool
        self._due = time.monotonic() + hold.flush_interval_s

    def next_flush_in_s(self) -> float:
        """Seconds until answers must be saved."""
        return max(0.05, self._due - time.monotonic())

    def tend(self) -> None:
        """Save if it is time; raises `StorageFault` when storage has refused for too long."""
        unsaved = self._spool.unsaved_bytes
        late = time.monotonic() >= self._due
        if not late and (unsaved < self._hold.flush_bytes or self.failing_since is not None):
            return
        try:
            self.flush()
        except StorageFault as fault:
            self._bear(fault)
        self._due = time.monotonic() + (self._pause_s if self.failing_since else self._hold.flush_interval_s)

    def finish(self, keys: layout.PartKeys) -> Part:
        """Write the chunk's part, with the same patience unless the run is to stop."""
        hold = self._hold
        while True:
            try:
                return write_part(
                    hold.store, keys, chunk=self._order.chunk.index, spool=self._spool, sender=hold.sender
                )
            except StorageFault as fault:
                self._bear(fault)
                if hold.run.interrupted:
                    raise
            time.sleep(self._pause_s)
            hold.check()

    @property
    def _pause_s(self) -> float:
        """Between tries while storage refuses."""
        return min(self._hold.flush_interval_s, MOST_STORAGE_PAUSE_S)

    def flush(self) -> None:
        """Save what no segment holds yet."""
        if not self._spool.unsaved_bytes:
            return
        order = self._order
        key = layout.segment_key(
            order.batch_id, order.generation, order.chunk.index, order.epoch, _segment_number()
        )
        with self._hold.store.writer(key) as file:
            for piece in self._spool.unsaved():
                file.write(piece)
        self._spool.mark_saved()
        self.keys.append(key)
        self.failing_since = None

    def _bear(self, fault: StorageFault) -> None:
        now = time.monotonic()
        if self.failing_since is None:
            self.failing_since = now
            log.warning("chunk %d: %s; sending waits for storage", self._order.chunk.index, fault)
        elif now - self.failing_since > STORAGE_PATIENCE_S:
            raise fault


def _segment_number() -> int:
    """A number above those of the segments before, over retries of the task and processes as well."""
    return time.time_ns()
