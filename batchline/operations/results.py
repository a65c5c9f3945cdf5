"""A batch's results, one item a request in input order, whatever became of it; also while the batch runs.

A page of a finished batch is found through the manifest's row groups, without reading what lies before it.
"""

from __future__ import annotations

import hashlib
import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec

from batchline.models.batches import BatchResultsQuery
from batchline.models.errors import InputChanged, NotFound, StorageFault
from batchline.models.failures import ErrorCode
from batchline.models.ids import request_prefix
from batchline.models.json_scan import NotJSONError
from batchline.models.lines import ResultParts, split_line, split_result
from batchline.models.plan import OPEN_CHUNKS, Chunk, Plan, Stretch
from batchline.models.status import TERMINAL
from batchline.operations.result import Result
from batchline.steps.engine import Engine
from batchline.steps.figures import Figures, custom_id_text
from batchline.steps.merge import row_groups
from batchline.steps.parts import finished_keys, part_of, segments_of
from batchline.steps.plans import read_plan, whole_plan
from batchline.steps.requests import model_of, stretches
from batchline.steps.shared import reports_of
from batchline.steps.spool import records_of
from batchline.steps.write import read_manifest
from batchline.storage import layout
from batchline.storage.objects import ObjectStore
from batchline.storage.reading import RangeReader
from batchline.storage.records import BatchRecord

if TYPE_CHECKING:
    import pyarrow as pa

_STATUS: Mapping[str | None, str] = {
    None: "completed",
    ErrorCode.BATCH_EXPIRED: "expired",
    ErrorCode.BATCH_CANCELLED: "cancelled",
}
"""From a settled request's error code to its status; any other code is `failed`."""

COLUMNS = ("line", "ok", "custom_id", "model", "error_code", "offset", "length")


class _Row(msgspec.Struct, frozen=True, gc=False):
    """A request and where its result line is: bytes in an object, the line itself, or nowhere yet."""

    line: int
    custom_id: str
    model: str | None
    status: str
    key: str | None = None
    start: int = 0
    end: int = 0
    text: bytes | None = None


def results(engine: Engine, batch: BatchRecord, query: BatchResultsQuery) -> Iterator[Result]:
    """The results that the query asks for; none before the batch is validated.

    What goes while it is read, a chunk's segments when it gets its part and the parts when the batch comes to its
    end, is read on from what has taken its place.
    """
    if batch.in_progress_at is None:
        return
    plan = whole_plan(engine.store, batch.id)
    reading = _Reading(query)
    while reading.goes_on:
        before = _stage(engine, batch)
        try:
            yield from reading.items(engine, batch, plan)
        except (NotFound, StorageFault):
            batch = engine.records.get_batch(batch.id)
            if _stage(engine, batch) == before:
                raise


def _stage(engine: Engine, batch: BatchRecord) -> tuple[str, int, int]:
    """What changes whenever objects that the results are read from go."""
    if batch.status in TERMINAL:
        return batch.status, batch.generation, 0
    return batch.status, batch.generation, len(finished_keys(engine.store, batch.id, batch.generation))


class _Reading:
    """How far a query has been answered: the next request, and how many are to be left out or given yet."""

    def __init__(self, query: BatchResultsQuery) -> None:
        self.goes_on = True
        self._wanted = _filter(query)
        self._at = query.skip if self._wanted is None else 0
        self._skip = 0 if self._wanted is None else query.skip
        self._left = query.limit

    def items(self, engine: Engine, batch: BatchRecord, plan: Plan) -> Iterator[Result]:
        """The items from here on."""
        made = _Items(engine.store, plan)
        for row in _rows(engine, batch, plan, skip=self._at):
            if self._wanted is None or self._wanted(row):
                if self._skip:
                    self._skip -= 1
                else:
                    yield made.item(row)
                    self._left = None if self._left is None else self._left - 1
            self._at += 1
            if self._left == 0:
                break
        self.goes_on = False


def _filter(query: BatchResultsQuery) -> Callable[[_Row], bool] | None:
    search, status = (query.search or "").lower(), query.status
    if not search and status is None:
        return None
    return lambda row: (status is None or row.status == status) and search in row.custom_id.lower()


def _rows(engine: Engine, batch: BatchRecord, plan: Plan, *, skip: int) -> Iterator[_Row]:
    """Every request from the one numbered `skip` (from 0) on."""
    if batch.status in TERMINAL:
        if batch.final_prefix is not None:  # else it was over before anything was sent
            yield from _finished(engine.store, batch.final_prefix, skip)
        return
    if batch.final_prefix is None:
        yield from _running(engine, batch, plan, skip)
        return
    retried = read_plan(engine.store, batch)
    lines = {line for chunk in retried.chunks for line in chunk.only or ()}
    rows: Iterator[_Row] | None = None
    for row in _finished(engine.store, batch.final_prefix, skip):
        if row.line not in lines:
            yield row
            continue
        if rows is None:
            rows = _running(engine, batch, retried, sum(line < row.line for line in lines))
        yield next(rows)


def _finished(store: ObjectStore, prefix: str, skip: int) -> Iterator[_Row]:
    """The requests that the final files below the prefix hold, from that one on."""
    keys, groups = layout.final_keys(prefix), read_manifest(store, prefix).row_groups
    first = max(0, bisect_right([group.first_row for group in groups], skip) - 1)
    skip -= groups[first].first_row if groups else 0
    for table in row_groups(store, keys.requests, columns=COLUMNS, first=first):
        yield from _table_rows(table.slice(skip), keys.output, keys.errors)
        skip = max(0, skip - table.num_rows)


def _table_rows(table: pa.Table, output: str, errors: str) -> Iterator[_Row]:
    columns = [table[name].to_pylist() for name in COLUMNS]
    for line, ok, custom_id, model, code, offset, length in zip(*columns, strict=True):
        status = _STATUS.get(code, "failed")
        yield _Row(line, custom_id, model, status, output if ok else errors, offset, offset + length)


def _running(engine: Engine, batch: BatchRecord, plan: Plan, skip: int) -> Iterator[_Row]:
    """The plan's requests, from that one on, as far as they are settled on storage."""
    done = finished_keys(engine.store, batch.id, batch.generation)
    held = _held(engine, batch, [chunk.index for chunk in plan.chunks if chunk.index not in done])
    for chunk in plan.chunks:
        if skip >= chunk.requests:
            skip -= chunk.requests
            continue
        if chunk.index in done:
            rows = _part_rows(engine.store, done[chunk.index])
        else:
            waiting = "in_progress" if chunk.index in held else "pending"
            rows = _open_rows(engine, batch, plan, chunk, waiting)
        yield from islice(rows, skip, None)
        skip = 0


def _held(engine: Engine, batch: BatchRecord, unfinished: Sequence[int]) -> set[int]:
    """Which of the unfinished chunks are being sent: those that other processes report, else the first few."""
    if not batch.is_held(now=engine.records.now(), lease_s=engine.settings.lease_s):
        return set()
    reports = reports_of(engine.records.sender_reports(batch.id, batch.epoch))
    reported = {chunk for report in reports.values() for chunk in report.chunks}
    return reported or set(unfinished[:OPEN_CHUNKS])


def _part_rows(store: ObjectStore, key: str) -> Iterator[_Row]:
    import pyarrow.parquet as pq  # noqa: PLC0415 - half a second that must not delay other commands

    part = part_of(store, key)
    table = pq.read_table(io.BytesIO(store.read(key)), columns=list(COLUMNS))
    yield from _table_rows(table, part.keys.output, part.keys.errors)


def _open_rows(engine: Engine, batch: BatchRecord, plan: Plan, chunk: Chunk, waiting: str) -> Iterator[_Row]:
    """An unfinished chunk's requests: what its segments hold of them, the others as `waiting` says."""
    saved: dict[int, tuple[Figures, bytes]] = {}
    for _, segment in segments_of(engine.store, batch.id, batch.generation, chunk.index):
        for figures, text in records_of(segment):
            saved.setdefault(figures.line, (figures, text))
    only = None if chunk.only is None else set(chunk.only)
    given: set[int] = set()
    try:
        for row in _read_rows(engine, plan, chunk, waiting, saved, only):
            given.add(row.line)
            yield row
    except InputChanged:  # then the answers that are saved are all that can be told
        for line, (figures, text) in sorted(saved.items()):
            if line not in given:
                yield _saved_row(figures, text)


def _saved_row(figures: Figures, text: bytes) -> _Row:
    status = _STATUS.get(figures.error_code, "failed")
    return _Row(figures.line, figures.custom_id, figures.model, status, text=text)


def _read_rows(
    engine: Engine,
    plan: Plan,
    chunk: Chunk,
    waiting: str,
    saved: Mapping[int, tuple[Figures, bytes]],
    only: set[int] | None,
) -> Iterator[_Row]:
    for first, lines in stretches(engine.store, plan.input_key, chunk, file_bytes=plan.size_bytes):
        for line, request in enumerate(lines, first):
            if not request or request.isspace() or (only is not None and line not in only):
                continue
            if line in saved:
                yield _saved_row(*saved[line])
            else:
                parts = split_line(request)
                yield _Row(line, custom_id_text(parts.custom_id), model_of(parts.body), waiting)


NO_ANSWER: Final = ResultParts(None, None, None)


class _Items:
    """Makes items of rows, with the bodies read from the input and the result files."""

    def __init__(self, store: ObjectStore, plan: Plan) -> None:
        self._store = store
        self._prefix = request_prefix(plan.batch_id)
        self._requests = _Requests(store, plan)
        self._readers: dict[str, RangeReader] = {}

    def item(self, row: _Row) -> Result:
        """The row with its bodies."""
        text = self._text(row)
        parts = NO_ANSWER if text is None else split_result(text)
        return Result(
            id=f"{self._prefix}{row.line}",
            custom_id=row.custom_id,
            model=row.model,
            input_text=self._requests.body(row.line),
            response_text=parts.body,
            error=None if parts.code is None else f"{parts.code}: {parts.message}",
            status=row.status,
        )

    def _text(self, row: _Row) -> bytes | None:
        if row.key is None:
            return row.text
        if row.key not in self._readers:
            self._readers[row.key] = RangeReader(self._store, row.key)
        return self._readers[row.key].read(row.start, row.end)


class _Requests:
    """The bodies of input lines; the stretch that was read last is kept."""

    def __init__(self, store: ObjectStore, plan: Plan) -> None:
        self._stretches = [stretch for chunk in plan.chunks for stretch in chunk.stretches]
        self._firsts = [stretch.first_line for stretch in self._stretches]
        self._store = store
        self._key = plan.input_key
        self._reader: RangeReader | None = None
        self._held: tuple[Stretch, list[bytes] | None] | None = None

    def body(self, line: int) -> bytes | None:
        """The body of the request on that line; None if the input file is gone or has changed there."""
        try:
            stretch = self._stretches[bisect_right(self._firsts, line) - 1]
            if self._held is None or self._held[0] is not stretch:
                self._held = stretch, self._checked(stretch)
        except NotFound:
            return None
        if self._held[1] is None:
            return None
        try:
            return bytes(split_line(self._held[1][line - stretch.first_line]).body)
        except NotJSONError:  # of a batch that was planned when lines might be deeper
            return None

    def _checked(self, stretch: Stretch) -> list[bytes] | None:
        """The stretch's lines, or None if they are not the ones that the plan was made of."""
        self._reader = self._reader or RangeReader(self._store, self._key)
        if self._reader.size_bytes < stretch.end:
            return None
        text = self._reader.read(stretch.start, stretch.end)
        return text.split(b"\n") if hashlib.sha256(text).hexdigest() == stretch.sha256 else None
