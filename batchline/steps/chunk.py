"""Sends a chunk's requests and leaves a part behind: the step that a task maps over chunks."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from threading import BoundedSemaphore
from typing import Protocol

import msgspec

from batchline.models.errors import BatchlineError, InvalidInput
from batchline.models.ids import request_prefix
from batchline.models.lines import result_line
from batchline.models.plan import Chunk
from batchline.steps import saving
from batchline.steps.figures import Figures, figures_of
from batchline.steps.parts import Part, drop, part_of, segments_of
from batchline.steps.requests import calls, is_heavy, stretches
from batchline.steps.saving import Saver
from batchline.steps.spool import Spool
from batchline.steps.unread import ReadableCalls, end_without_input, ending_of, unread_lines
from batchline.storage import layout
from batchline.storage.objects import ObjectStore
from batchline.upstream.answers import Answer, Call
from batchline.upstream.run import Feed, Run

log = logging.getLogger(__name__)


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

    storage_is_proven: bool
    """True once storage has taken a write under this hold."""

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
        hold.note(part.chunk, part.completed, part.failed - part.unanswered)
        return _result(part)
    with hold.heavy if is_heavy(order.chunk) else nullcontext(), Spool() as spool:
        old = [] if untouched else _recover(order, hold, spool, counted=not first_try)
        with Saver(hold, spool, order.chunk.index, partial(_segment_key, order)) as saver:
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


def _send(order: ChunkOrder, hold: Hold, spool: Spool, saver: Saver) -> None:
    """Feed the caller with the requests that have no answer yet, and spool the answers.

    If anything fails, nothing more is sent, and requests in flight have the grace to be answered.
    """
    if len(spool) < order.chunk.requests:
        saver.prove_storage()
    todo = ReadableCalls(_calls(order, hold, spool))
    with hold.run.open_feed(order.chunk.index) as feed:
        try:
            while not feed.drained:
                if not saver.is_failing:
                    _fill(feed, todo)
                else:
                    time.sleep(saving.STORAGE_PAUSE_S)
                _take(order, hold, spool, feed.wait(saver.next_flush_in_s()))
                saver.tend()
                hold.check()
        except BatchlineError:
            feed.withdraw()
            give_up_at = time.monotonic() + hold.run.grace_s
            while not feed.drained and time.monotonic() < give_up_at:
                _take(order, hold, spool, feed.wait(saving.STORAGE_PAUSE_S))
            raise
    if todo.error is not None:
        saver.flush()
        stop = end_without_input(hold.run, todo.error)
        rows, lines = unread_lines(order.chunk, spool, prefix=request_prefix(order.batch_id), stop=stop)
        spool.add(rows, lines)
        _note(order, hold, rows)


def _take(order: ChunkOrder, hold: Hold, spool: Spool, answers: Sequence[Answer]) -> None:
    if not answers:
        return
    prefix = request_prefix(order.batch_id)
    lines = [_line(prefix, answer) for answer in answers]
    rows = [figures_of(answer) for answer in answers]
    spool.add(rows, lines)
    _note(order, hold, rows)


def _note(order: ChunkOrder, hold: Hold, rows: Sequence[Figures]) -> None:
    hold.note(order.chunk.index, sum(row.ok for row in rows), sum(row.failed for row in rows))


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


def _segment_key(order: ChunkOrder) -> str:
    """Return the key of a new segment; numbers rise over retries of the task and over processes as well."""
    return layout.segment_key(order.batch_id, order.generation, order.chunk.index, order.epoch, time.time_ns())
