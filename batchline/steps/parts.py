"""Reads and writes a batch's results on storage, as segments and parts.

A *segment* holds results of an unfinished chunk as they arrived; a *part* all results of a finished chunk, in
input order. A part is three objects, of which the metrics are written last: it exists if its metrics do.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from batchline.analytics.failure_messages import MessageCounts, StoredMessages
from batchline.analytics.request_metrics import DICTIONARY_COLUMNS, RequestMetrics, build_table
from batchline.models.error_codes import ErrorCode
from batchline.models.errors import StorageFault
from batchline.models.lines import read_error_message
from batchline.storage.objects import layout
from batchline.storage.objects.store import ObjectStore, ObjectWriter

if TYPE_CHECKING:
    from batchline.steps.spool import Spool

log = logging.getLogger(__name__)

LINES_PER_WRITE = 256


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A finished part: its chunk, its keys, and how its requests ended.

    It has an object of output lines if any request completed, and one of error lines if any failed. `failed`
    includes `unanswered`, the requests left open by a cancel or a closed window; `expired` counts the latter.
    `messages` are the most frequent messages of its failures.
    """

    chunk: int
    keys: layout.PartKeys
    completed: int
    failed: int
    unanswered: int
    expired: int
    messages: StoredMessages = {}


def write_part(store: ObjectStore, keys: layout.PartKeys, *, chunk: int, spool: Spool, sender: str = "") -> Part:
    """Write a chunk's part from its spool and return it, or another sender's that came first; safe to repeat."""
    rows: list[RequestMetrics] = []
    offsets: list[int] = []
    lengths: list[int] = []
    ends = {True: 0, False: 0}
    files: dict[bool, ObjectWriter] = {}
    message_counts = MessageCounts()
    records = spool.in_order()
    with ExitStack() as stack:
        while block := list(islice(records, LINES_PER_WRITE)):
            for metrics, line in block:
                rows.append(metrics)
                offsets.append(ends[metrics.ok])
                lengths.append(len(line))
                ends[metrics.ok] += len(line)
                if metrics.error_code is not None:
                    message_counts.add(metrics.error_code, read_error_message(line))
            for ok, key in ((True, keys.output), (False, keys.errors)):
                lines = b"".join([line for metrics, line in block if metrics.ok is ok])
                if lines and ok not in files:  # an object is created with its first line
                    files[ok] = stack.enter_context(store.writer(key))
                if lines:
                    files[ok].write(lines)
    completed = sum(row.ok for row in rows)
    failed = len(rows) - completed
    expired = sum(row.error_code == ErrorCode.BATCH_EXPIRED for row in rows) if failed else 0
    unanswered = failed - sum(row.is_failed for row in rows)
    counts = {"completed": completed, "failed": failed, "unanswered": unanswered, "expired": expired}
    messages = message_counts.to_stored()
    metadata = {**counts, "sender": sender, "messages": msgspec.json.encode(messages).decode()}
    metrics_file = _encode_parquet(rows, offsets, lengths, metadata)
    if not sender:
        store.put(keys.metrics, metrics_file)
    elif not store.put_if_absent(keys.metrics, metrics_file):
        # Senders of one epoch share the key of the metrics but not those of the lines: the first one wins.
        part = read_part(store, keys.metrics)
        if part.keys != keys:
            try_delete(store, [keys.output, keys.errors])
        return part
    return Part(chunk=chunk, keys=keys, messages=messages, **counts)


def _encode_parquet(
    rows: list[RequestMetrics], offsets: list[int], lengths: list[int], metadata: Mapping[str, object]
) -> bytes:
    import pyarrow.parquet as pq  # noqa: PLC0415 - half a second that must not delay the first request

    table = build_table(rows, offsets=offsets, lengths=lengths)
    buffer = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata({name: str(value) for name, value in metadata.items()}),
        buffer,
        compression="snappy",
        use_dictionary=list(DICTIONARY_COLUMNS),
        # Parts are only read whole, which needs no statistics.
        write_statistics=False,
    )
    return buffer.getvalue()


def read_part(store: ObjectStore, key: str) -> Part:
    """Return the finished part whose metrics are stored at the key."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    name = layout.parse_part(key)
    metadata = pq.read_schema(io.BytesIO(store.read(key))).metadata
    sender = metadata.get(b"sender", b"").decode()
    return Part(
        chunk=name.chunk,
        keys=layout.part_keys(name.batch_id, name.generation, name.chunk, name.epoch, sender=sender),
        completed=int(metadata[b"completed"]),
        failed=int(metadata[b"failed"]),
        unanswered=int(metadata.get(b"unanswered", 0)),  # absent from parts of earlier versions
        expired=int(metadata[b"expired"]),
        messages=msgspec.json.decode(metadata.get(b"messages", b"{}"), type=StoredMessages),
    )


def find_finished_keys(store: ObjectStore, batch_id: str, generation: int) -> dict[int, str]:
    """Return the keys of the finished parts' metrics by chunk."""
    first_finished: dict[int, tuple[int, str]] = {}
    for info in store.list_objects(layout.parts_prefix(batch_id, generation)):
        if not info.key.endswith(".parquet"):
            continue
        name = layout.parse_part(info.key)
        # Two runners may have finished one chunk; all readers must choose the same part.
        if name.chunk not in first_finished or name.epoch < first_finished[name.chunk][0]:
            first_finished[name.chunk] = (name.epoch, info.key)
    return {chunk: key for chunk, (_, key) in sorted(first_finished.items())}


def read_segments(store: ObjectStore, batch_id: str, generation: int, chunk: int) -> Iterator[tuple[str, bytes]]:
    """Yield the keys and contents of the chunk's segments, of every epoch, oldest first."""
    infos = store.list_objects(layout.segments_prefix(batch_id, generation))
    segments = [(layout.parse_segment(info.key), info.key) for info in infos]
    for segment, key in sorted(segments, key=lambda pair: (pair[0].epoch, pair[0].number)):
        if segment.chunk == chunk:
            yield key, store.read(key)


def try_delete(store: ObjectStore, keys: Iterable[str]) -> None:
    """Delete objects that are no longer needed; a storage fault is only logged, as they do no harm."""
    try:
        store.delete(keys)
    except StorageFault as fault:
        log.warning("segments that are no longer needed could not be deleted: %s", fault)
