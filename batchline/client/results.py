"""A batch's results, one item per request in input order, also while the batch runs.

A page of a finished batch is located by the manifest's row groups, without reading the rows before it.
"""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from batchline.analytics.request_metrics import RequestMetrics, decode_custom_id, to_metrics_schema
from batchline.client.raw_result import RawResult
from batchline.engine.sender_reports import decode_reports
from batchline.engine.services import Services
from batchline.models.batches import BatchResultsQuery
from batchline.models.error_codes import ErrorCode
from batchline.models.errors import InputChanged, NotFound, StorageFault
from batchline.models.ids import request_id_prefix
from batchline.models.json_scan import NotJSONError
from batchline.models.lines import ResultLine, parse_request_line, parse_result_line
from batchline.models.plan import MAX_OPEN_CHUNKS, Chunk, InputRange, Plan
from batchline.models.status import TERMINAL_STATUSES
from batchline.steps.merge import read_row_groups
from batchline.steps.parts import find_finished_keys, read_part, read_segments
from batchline.steps.plans import read_first_plan, read_plan
from batchline.steps.requests import parse_model, read_line_blocks
from batchline.steps.spool import parse_segment_records
from batchline.steps.write import read_manifest
from batchline.storage.objects import layout
from batchline.storage.objects.readers import RangeReader
from batchline.storage.objects.store import ObjectStore
from batchline.storage.records.store import BatchRecord

if TYPE_CHECKING:
    import pyarrow as pa

_STATUS_OF_CODE: Mapping[str | None, str] = {
    None: "completed",
    ErrorCode.BATCH_EXPIRED: "expired",
    ErrorCode.BATCH_CANCELLED: "cancelled",
}
"""From a settled request's error code to its status; any other code is `failed`."""

ROW_COLUMNS = ("line", "ok", "custom_id", "model", "error_code", "finish_reason", "mark", "offset", "length")


class _ResultRow(msgspec.Struct, frozen=True, gc=False):
    """A request and its result line: a byte range of an object, the line itself, or none yet."""

    line: int
    custom_id: str
    model: str | None
    status: str
    key: str | None = None
    start: int = 0
    end: int = 0
    text: bytes | None = None
    finish_reason: str | None = None
    mark: str | None = None


def read_results(services: Services, batch: BatchRecord, query: BatchResultsQuery) -> Iterator[RawResult]:
    """Yield the results that match the query; none before the batch is validated.

    Objects may be deleted during the read: segments when their chunk's part is written, parts when the batch ends.
    Reading then continues from the objects that replace them.
    """
    if batch.in_progress_at is None:
        return
    plan = read_first_plan(services.store, batch.id)
    reader = _ResultsReader(query)
    while reader.has_more:
        previous_state = _storage_state(services, batch)
        try:
            yield from reader.read_items(services, batch, plan)
        except (NotFound, StorageFault):
            batch = services.records.get_batch(batch.id)
            # Nothing was replaced, so the object is really missing.
            if _storage_state(services, batch) == previous_state:
                raise


def _storage_state(services: Services, batch: BatchRecord) -> tuple[str, int, int]:
    """Return a value that changes whenever objects that results are read from are deleted."""
    if batch.status in TERMINAL_STATUSES:
        return batch.status, batch.generation, 0
    return batch.status, batch.generation, len(find_finished_keys(services.store, batch.id, batch.generation))


class _ResultsReader:
    """Position of a query: the next row, and the numbers of matches still to skip and to return."""

    def __init__(self, query: BatchResultsQuery) -> None:
        self.has_more = True
        search, status = (query.search or "").lower(), query.status
        self._matches: Callable[[_ResultRow], bool] | None = None
        if search or status is not None:
            self._matches = lambda row: status in {None, row.status} and search in row.custom_id.lower()
        self._next_row = query.skip if self._matches is None else 0
        self._remaining_skip = 0 if self._matches is None else query.skip
        self._remaining_limit = query.limit

    def read_items(self, services: Services, batch: BatchRecord, plan: Plan) -> Iterator[RawResult]:
        """Yield the items from the current position on."""
        builder = _ResultBuilder(services.store, plan)
        for row in _select_rows(services, batch, plan, skip=self._next_row):
            if self._matches is None or self._matches(row):
                if self._remaining_skip:
                    self._remaining_skip -= 1
                else:
                    yield builder.build(row)
                    self._remaining_limit = None if self._remaining_limit is None else self._remaining_limit - 1
            self._next_row += 1
            if self._remaining_limit == 0:
                break
        self.has_more = False


def _select_rows(services: Services, batch: BatchRecord, plan: Plan, *, skip: int) -> Iterator[_ResultRow]:
    """Yield every request from number `skip` (counted from 0) on."""
    if batch.status in TERMINAL_STATUSES:
        if batch.final_prefix is not None:  # None if it ended before anything was sent
            yield from _final_rows(services.store, batch.final_prefix, skip)
        return
    if batch.final_prefix is None:
        yield from _partial_rows(services, batch, plan, skip)
        return
    retry_plan = read_plan(services.store, batch)
    retried_lines = {line for chunk in retry_plan.chunks for line in chunk.only or ()}
    partial_rows: Iterator[_ResultRow] | None = None
    for row in _final_rows(services.store, batch.final_prefix, skip):
        if row.line not in retried_lines:
            yield row
            continue
        if partial_rows is None:
            partial_rows = _partial_rows(
                services, batch, retry_plan, sum(line < row.line for line in retried_lines)
            )
        yield next(partial_rows)


def _final_rows(store: ObjectStore, prefix: str, skip: int) -> Iterator[_ResultRow]:
    """Yield the requests in the final files below `prefix`, from number `skip` on."""
    keys, groups = layout.final_keys(prefix), read_manifest(store, prefix).row_groups
    first_group = max(0, bisect_right([group.first_row for group in groups], skip) - 1)
    skip -= groups[first_group].first_row if groups else 0
    for table in read_row_groups(store, keys.requests, columns=ROW_COLUMNS, first=first_group):
        yield from _table_rows(table.slice(skip), keys.output, keys.errors)
        skip = max(0, skip - table.num_rows)


def _table_rows(table: pa.Table, output: str, errors: str) -> Iterator[_ResultRow]:
    columns = [table[name].to_pylist() for name in ROW_COLUMNS]
    for line, ok, custom_id, model, code, finish_reason, mark, offset, length in zip(*columns, strict=True):
        yield _ResultRow(
            line,
            custom_id,
            model,
            _STATUS_OF_CODE.get(code, "failed"),
            output if ok else errors,
            offset,
            offset + length,
            finish_reason=finish_reason,
            mark=mark,
        )


def _partial_rows(services: Services, batch: BatchRecord, plan: Plan, skip: int) -> Iterator[_ResultRow]:
    """Yield the plan's requests from number `skip` on, with the results stored so far."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - its import takes half a second

    finished = find_finished_keys(services.store, batch.id, batch.generation)
    in_progress: set[int] = set()
    if batch.is_leased(now=services.records.now(), lease_s=services.settings.lease_s):
        # Those that processes report, else the first few.
        reports = decode_reports(services.records.read_sender_reports(batch.id, batch.epoch))
        unfinished = [chunk.index for chunk in plan.chunks if chunk.index not in finished]
        in_progress = {chunk for report in reports.values() for chunk in report.chunks}
        in_progress = in_progress or set(unfinished[:MAX_OPEN_CHUNKS])
    for chunk in plan.chunks:
        if skip >= chunk.requests:
            skip -= chunk.requests
            continue
        if chunk.index in finished:
            part = read_part(services.store, finished[chunk.index])
            data = io.BytesIO(services.store.read(finished[chunk.index]))
            table = to_metrics_schema(pq.read_table(data), ROW_COLUMNS)
            rows = _table_rows(table, part.keys.output, part.keys.errors)
        else:
            status = "in_progress" if chunk.index in in_progress else "pending"
            rows = _pending_rows(services, batch, plan, chunk, status)
        yield from islice(rows, skip, None)
        skip = 0


def _pending_rows(
    services: Services, batch: BatchRecord, plan: Plan, chunk: Chunk, unsettled_status: str
) -> Iterator[_ResultRow]:
    """Yield an unfinished chunk's requests: saved results from its segments, the rest as `unsettled_status`."""
    saved: dict[int, tuple[RequestMetrics, bytes]] = {}
    for _, segment in read_segments(services.store, batch.id, batch.generation, chunk.index):
        for metrics, text in parse_segment_records(segment):
            # Two processes may both settle a line at a handover; the oldest segment wins, as in the spool.
            saved.setdefault(metrics.line, (metrics, text))
    only_lines = None if chunk.only is None else set(chunk.only)
    yielded: set[int] = set()
    try:
        for row in _read_input_rows(services, plan, chunk, unsettled_status, saved, only_lines):
            yielded.add(row.line)
            yield row
    except InputChanged:  # the input is gone: only saved answers can be returned
        for line, (metrics, text) in sorted(saved.items()):
            if line not in yielded:
                yield _saved_row(metrics, text)


def _saved_row(metrics: RequestMetrics, text: bytes) -> _ResultRow:
    status = _STATUS_OF_CODE.get(metrics.error_code, "failed")
    return _ResultRow(
        metrics.line,
        metrics.custom_id,
        metrics.model,
        status,
        text=text,
        finish_reason=metrics.finish_reason,
        mark=metrics.mark,
    )


def _read_input_rows(
    services: Services,
    plan: Plan,
    chunk: Chunk,
    unsettled_status: str,
    saved: Mapping[int, tuple[RequestMetrics, bytes]],
    only_lines: set[int] | None,
) -> Iterator[_ResultRow]:
    for first_line, lines in read_line_blocks(services.store, plan.input_key, chunk, file_bytes=plan.size_bytes):
        for line, request in enumerate(lines, first_line):
            if not request or request.isspace() or (only_lines is not None and line not in only_lines):
                continue
            if line in saved:
                yield _saved_row(*saved[line])
            else:
                parts = parse_request_line(request)
                yield _ResultRow(
                    line, decode_custom_id(parts.custom_id), parse_model(parts.body), unsettled_status
                )


EMPTY_RESULT_PARTS: Final = ResultLine(None, None, None)


class _ResultBuilder:
    """Builds results from rows, with bodies read from the input and result files."""

    def __init__(self, store: ObjectStore, plan: Plan) -> None:
        self._store = store
        self._prefix = request_id_prefix(plan.batch_id)
        self._requests = _RequestBodies(store, plan)
        self._readers: dict[str, RangeReader] = {}

    def build(self, row: _ResultRow) -> RawResult:
        """Return the row's result with its bodies."""
        text = row.text
        if row.key is not None:
            if row.key not in self._readers:
                self._readers[row.key] = RangeReader(self._store, row.key)
            text = self._readers[row.key].read(row.start, row.end)
        parts = EMPTY_RESULT_PARTS if text is None else parse_result_line(text)
        return RawResult(
            id=f"{self._prefix}{row.line}",
            custom_id=row.custom_id,
            model=row.model,
            input_text=self._requests.read_body(row.line),
            response_text=parts.body,
            error=None if parts.code is None else f"{parts.code}: {parts.message}",
            status=row.status,
            finish_reason=row.finish_reason,
            mark=row.mark,
        )


class _RequestBodies:
    """Bodies of input lines; caches the input range read last."""

    def __init__(self, store: ObjectStore, plan: Plan) -> None:
        self._input_ranges = [input_range for chunk in plan.chunks for input_range in chunk.ranges]
        self._first_lines = [input_range.first_line for input_range in self._input_ranges]
        self._store = store
        self._key = plan.input_key
        self._reader: RangeReader | None = None
        self._loaded: tuple[InputRange, list[bytes] | None] | None = None

    def read_body(self, line: int) -> bytes | None:
        """Return the body of the request on that line; None if the input file is gone or has changed there."""
        try:
            input_range = self._input_ranges[bisect_right(self._first_lines, line) - 1]
            if self._loaded is None or self._loaded[0] is not input_range:
                self._loaded = input_range, self._read_unchanged(input_range)
        except NotFound:
            return None
        if self._loaded[1] is None:
            return None
        try:
            return bytes(parse_request_line(self._loaded[1][line - input_range.first_line]).body)
        except NotJSONError:  # planned by a version that allowed deeper nesting
            return None

    def _read_unchanged(self, input_range: InputRange) -> list[bytes] | None:
        """Return the range's lines, or None if they differ from those that were planned."""
        self._reader = self._reader or RangeReader(self._store, self._key)
        if self._reader.size_bytes < input_range.end:
            return None
        text = self._reader.read(input_range.start, input_range.end)
        return text.split(b"\n") if hashlib.sha256(text).hexdigest() == input_range.sha256 else None
