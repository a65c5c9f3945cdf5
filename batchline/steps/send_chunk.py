"""Sends a chunk's requests and writes its part: the step that a task maps over chunks."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import msgspec

from batchline.analytics.request_metrics import RequestMetrics
from batchline.models.errors import BatchlineError, InputChanged, InvalidInput
from batchline.models.ids import request_id_prefix
from batchline.models.plan import Chunk
from batchline.steps import segment_writer
from batchline.steps.context import SendContext
from batchline.steps.missing_input import build_missing_results, find_final_stop, require_final_stop
from batchline.steps.parts import Part, read_part, read_segments, try_delete
from batchline.steps.requests import build_calls, has_large_line, read_line_blocks
from batchline.steps.result_rows import build_metrics, build_result_line
from batchline.steps.segment_writer import SegmentWriter
from batchline.steps.spool import Spool
from batchline.storage.objects import layout
from batchline.upstream.call_results import Call, CallResult

log = logging.getLogger(__name__)


class ChunkSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The input of `send_chunk`, without secrets; `is_fresh` means that no result of the chunk is stored yet."""

    batch_id: str
    generation: int
    epoch: int
    endpoint: str
    input_key: str
    input_bytes: int
    model: str | None
    chunk: Chunk
    is_fresh: bool = False


class ChunkResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a chunk; `is_finished` is false if it was interrupted before all requests were settled."""

    chunk: int
    completed: int
    failed: int
    is_finished: bool


def send_chunk(spec: ChunkSpec, context: SendContext) -> ChunkResult:
    """Settle every request of the chunk, write its part, and return its counts.

    Safe to repeat: a finished part is kept, and of an unfinished one only requests without a saved result are
    sent. Raises `InputChanged`, `LeaseLost` or `StorageFault`; results received before that are saved.
    """
    batch_id, generation, epoch, chunk = spec.batch_id, spec.generation, spec.epoch, spec.chunk
    keys = layout.part_keys(batch_id, generation, chunk.index, epoch, sender=context.sender_id)
    is_first_start = context.mark_chunk_started(chunk.index)
    is_untouched = spec.is_fresh and is_first_start
    # A chunk of a new batch, the usual case, needs no request to storage.
    if not is_untouched and context.store.exists(keys.metrics):
        part = read_part(context.store, keys.metrics)
        context.add_settled(part.chunk, part.completed, part.failed - part.unanswered)
        return _finished_result(part)

    def new_segment_key() -> str:
        # The number is the time, so that it rises across tasks and processes.
        return layout.segment_key(batch_id, generation, chunk.index, epoch, time.time_ns())

    with context.large_chunk_slots if has_large_line(chunk.ranges) else nullcontext(), Spool() as spool:
        recovered_keys = (
            [] if is_untouched else _recover_segments(spec, context, spool, is_counted=not is_first_start)
        )
        with SegmentWriter(context, spool, chunk.index, new_segment_key) as writer:
            _send_requests(spec, context, spool, writer)
            context.raise_if_lost()
            if len(spool) < chunk.requests:
                writer.flush()
                completed = spool.completed
                return ChunkResult(
                    chunk=chunk.index, completed=completed, failed=len(spool) - completed, is_finished=False
                )
            part = writer.write_part_when_possible(keys)
    # Not before the part exists, which replaces the segments.
    try_delete(context.store, [*recovered_keys, *writer.segment_keys])
    return _finished_result(part)


def _finished_result(part: Part) -> ChunkResult:
    return ChunkResult(chunk=part.chunk, completed=part.completed, failed=part.failed, is_finished=True)


def _recover_segments(spec: ChunkSpec, context: SendContext, spool: Spool, *, is_counted: bool) -> list[str]:
    """Spool the results in the chunk's segments, counted before if `is_counted`; return the segments' keys."""
    keys = []
    for key, segment in read_segments(context.store, spec.batch_id, spec.generation, spec.chunk.index):
        recovered = spool.recover(segment)
        _count_settled(spec, context, recovered, is_recovered=not is_counted)
        keys.append(key)
    if keys:
        log.info(
            "chunk %d: %d of %d requests were answered before",
            spec.chunk.index,
            len(spool),
            spec.chunk.requests,
        )
    return keys


def _send_requests(spec: ChunkSpec, context: SendContext, spool: Spool, writer: SegmentWriter) -> None:
    """Queue the requests without a result at the dispatcher, and spool the results."""
    if len(spool) < spec.chunk.requests:
        writer.probe_storage()
    calls = _read_calls(spec, context, spool)
    input_error: InputChanged | None = None
    with context.session.open_queue(spec.chunk.index) as queue:
        try:
            while not queue.is_done:
                if not writer.is_failing:
                    while queue.wants_calls:
                        try:
                            block = next(calls, None)
                        except InputChanged as error:
                            block, input_error = None, error
                        if block is None:
                            queue.end_input()
                            break
                        queue.put(block)
                else:
                    # `wait_for_results` returns at once while the queue wants calls.
                    time.sleep(segment_writer.STORAGE_PAUSE_S)
                _store_results(spec, context, spool, queue.wait_for_results(writer.next_flush_in_s()))
                writer.flush_if_due()
                context.raise_if_lost()
        except BatchlineError:
            queue.withdraw()
            # Requests in flight are paid for: their results are collected, and saved by the writer's exit.
            give_up_at = time.monotonic() + context.session.grace_s
            while not queue.is_done and time.monotonic() < give_up_at:
                _store_results(spec, context, spool, queue.wait_for_results(segment_writer.STORAGE_PAUSE_S))
            raise
    if input_error is not None:
        # Before the next line, which may raise.
        writer.flush()
        stop = require_final_stop(context.session, input_error)
        metrics, lines = build_missing_results(
            spec.chunk, spool, prefix=request_id_prefix(spec.batch_id), stop=stop
        )
        spool.add(metrics, lines)
        _count_settled(spec, context, metrics)


def _store_results(spec: ChunkSpec, context: SendContext, spool: Spool, results: Sequence[CallResult]) -> None:
    if not results:
        return
    id_prefix = request_id_prefix(spec.batch_id)
    lines = [build_result_line(id_prefix, result) for result in results]
    metrics = [build_metrics(result) for result in results]
    spool.add(metrics, lines)
    _count_settled(spec, context, metrics)


def _count_settled(
    spec: ChunkSpec, context: SendContext, metrics: Sequence[RequestMetrics], *, is_recovered: bool = False
) -> None:
    completed, failed = sum(row.ok for row in metrics), sum(row.is_failed for row in metrics)
    context.add_settled(spec.chunk.index, completed, failed, is_recovered=is_recovered)


def _read_calls(spec: ChunkSpec, context: SendContext, spool: Spool) -> Iterator[list[Call]]:
    def find_upstream(model: str | None) -> str:
        try:
            return context.find_upstream(model)
        except InvalidInput:
            if find_final_stop(context.session) is None:
                raise
            return ""  # the session settles the request without sending it, so it needs no upstream

    only_lines = None if spec.chunk.only is None else frozenset(spec.chunk.only)
    for first_line, lines in read_line_blocks(
        context.store, spec.input_key, spec.chunk, file_bytes=spec.input_bytes
    ):
        yield build_calls(
            enumerate(lines, first_line),
            endpoint=spec.endpoint,
            only_model=spec.model,
            find_upstream=find_upstream,
            only_lines=only_lines,
            skipped_lines=spool,
        )
