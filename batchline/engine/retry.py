"""Puts failed or marked requests of a finished batch back to pending, as a generation over the earlier results."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batchline.engine.deletion import delete_objects
from batchline.engine.services import Services
from batchline.models.error_codes import UNANSWERED_CODES
from batchline.models.errors import Conflict, InvalidInput, NotFound, StorageFault
from batchline.models.ids import request_id_prefix
from batchline.models.manifest import Manifest
from batchline.models.outcomes import Mark
from batchline.models.plan import plan_retry
from batchline.models.status import TERMINAL_STATUSES
from batchline.steps.merge import has_error_code, read_row_groups
from batchline.steps.plans import read_first_plan
from batchline.steps.transitions import new_error_file, new_output_file
from batchline.steps.write import read_manifest
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord, FileChanges, OpenBatchLimit, PendingDeletion

if TYPE_CHECKING:
    import numpy as np

MAX_NAMED_PROBLEMS = 5
PREPARATION_TIMEOUT_S = 86_400
"""Seconds that preparing a retry may take; objects not in use by then are deleted."""


def retry_batch(
    services: Services,
    batch_id: str,
    request_ids: Sequence[str] | None = None,
    *,
    mark: Mark | None = None,
    open_batch_limit: OpenBatchLimit | None = None,
) -> BatchRecord:
    """Put failed requests of a finished batch back to pending and return its record; all of them by default.

    With a `mark`, put the completed requests that have it back to pending instead of failed ones. The batch is
    then `in_progress` with a new window, for the caller to run.

    Raises `Conflict` if the batch is not over or has nothing to retry, `InvalidInput` for an id that is unknown,
    of another batch or of a request that did not fail, `NotFound` if the input is gone, and `LimitReached` if
    `open_batch_limit` is reached; in these cases nothing has changed.
    """
    batch = services.records.get_batch(batch_id)
    if batch.status not in TERMINAL_STATUSES:
        raise Conflict(f"batch {batch.id} is {batch.status}; only a batch that is over can be retried")
    if batch.final_prefix is None or not (batch.not_completed or mark):
        reason = "no request was sent" if batch.final_prefix is None else "every request succeeded"
        raise Conflict(f"batch {batch.id} has nothing to retry: {reason}")
    base_manifest = read_manifest(services.store, batch.final_prefix)
    file = services.records.get_file(batch.input_file_id)
    if not services.store.exists(file.key):
        raise NotFound(f"the content of input file {file.id} is gone; upload it again and start a new batch")
    keys = layout.final_keys(base_manifest.prefix)
    for key, size in ((keys.output, base_manifest.output_bytes), (keys.errors, base_manifest.errors_bytes)):
        if size and not services.store.exists(key):
            raise Conflict(
                f"batch {batch.id} cannot be retried: a file of its results was deleted; start a new batch from "
                "its input file"
            )
    outcomes = _read_outcomes(services, base_manifest)
    if mark is not None:
        lines_to_retry = _marked_lines(batch, mark, outcomes)
    elif request_ids is None:
        lines_to_retry = outcomes.lines[~outcomes.ok].tolist()
    else:
        lines_to_retry = _named_lines(batch, request_ids, outcomes)
    left_unanswered = len(set(outcomes.lines[outcomes.unanswered].tolist()).difference(lines_to_retry))
    return _start_retry(
        services,
        batch,
        lines_to_retry,
        open_batch_limit,
        completed=len(lines_to_retry) if mark is not None else 0,
        unanswered=left_unanswered,
    )


def resolve_request_ids(services: Services, batch: BatchRecord, names: Sequence[str]) -> list[str]:
    """Return the names with the batch's custom_ids replaced by request ids; other names stay as they are."""
    prefix = request_id_prefix(batch.id)
    custom_ids = {name for name in names if not name.startswith(prefix)}
    if not custom_ids or batch.final_prefix is None:
        return list(names)
    ids_by_custom_id: dict[str, str] = {}
    key = layout.final_keys(batch.final_prefix).requests
    for table in read_row_groups(services.store, key, columns=("line", "custom_id")):
        for line, custom_id in zip(table["line"].to_pylist(), table["custom_id"].to_pylist(), strict=True):
            if custom_id in custom_ids:
                ids_by_custom_id[custom_id] = f"{prefix}{line}"
    return [ids_by_custom_id.get(name, name) for name in names]


class _Outcomes(NamedTuple):
    """Arrays over all requests: ascending line numbers, flags of success and of no answer, and marks."""

    lines: np.ndarray
    ok: np.ndarray
    unanswered: np.ndarray
    marks: np.ndarray


def _read_outcomes(services: Services, base_manifest: Manifest) -> _Outcomes:
    import pyarrow as pa  # noqa: PLC0415 - half a second that must not delay other commands

    key = layout.final_keys(base_manifest.prefix).requests
    tables = list(read_row_groups(services.store, key, columns=("line", "ok", "error_code", "mark")))
    table = pa.concat_tables(tables)
    return _Outcomes(
        lines=table["line"].to_numpy(),
        ok=table["ok"].to_numpy(),
        unanswered=has_error_code(table, UNANSWERED_CODES),
        marks=table["mark"].cast(pa.string()).to_numpy(),
    )


def _marked_lines(batch: BatchRecord, mark: Mark, outcomes: _Outcomes) -> list[int]:
    """Return the lines of the completed requests with that mark; raises `Conflict` if there are none."""
    lines: list[int] = outcomes.lines[outcomes.ok & (outcomes.marks == mark)].tolist()
    if not lines:
        counts = Counter(filter(None, outcomes.marks[outcomes.ok].tolist()))
        others = ", ".join(f"{count:,} {other}" for other, count in counts.most_common())
        raise Conflict(
            f"batch {batch.id} has nothing to retry: no completed request is marked {mark} "
            f"({f'there are {others}' if others else 'none has a mark'})"
        )
    return lines


def _named_lines(batch: BatchRecord, request_ids: Sequence[str], outcomes: _Outcomes) -> list[int]:
    """Return the lines of the named requests, ascending; raises `InvalidInput` unless each is one that failed."""
    ok_by_line = dict(zip(outcomes.lines.tolist(), outcomes.ok.tolist(), strict=True))
    prefix = request_id_prefix(batch.id)
    problems: list[str] = []
    selected: set[int] = set()
    for request_id in request_ids:
        line_text = request_id.removeprefix(prefix)
        # Below 19 digits, so that the number fits into 64 bits; int() would also accept other scripts' digits.
        line = int(line_text) if line_text.isascii() and line_text.isdecimal() and len(line_text) < 19 else 0
        if not request_id.startswith(prefix):
            problems.append(f"{request_id[:80]!r} is neither a request id nor a custom_id of this batch")
        elif line not in ok_by_line or str(line) != line_text:
            problems.append(f"{request_id[:80]!r} is unknown")
        elif ok_by_line[line]:
            problems.append(f"{request_id!r} has not failed")
        else:
            selected.add(line)
    if not request_ids:
        problems.append("no request is given")
    if problems:
        more = f"; and {len(problems) - MAX_NAMED_PROBLEMS} more" if len(problems) > MAX_NAMED_PROBLEMS else ""
        raise InvalidInput(
            f"batch {batch.id} is unchanged: {'; '.join(problems[:MAX_NAMED_PROBLEMS])}{more}",
            param="request_ids",
        )
    return sorted(selected)


def _start_retry(
    services: Services,
    batch: BatchRecord,
    lines: list[int],
    open_batch_limit: OpenBatchLimit | None,
    *,
    completed: int,
    unanswered: int,
) -> BatchRecord:
    """Write the retry's plan and start it.

    `completed` counts its requests that had completed, `unanswered` those without a response that are not in it.
    """
    settings, store, now = services.settings, services.store, int(time.time())
    new_files = {
        field: build_file(batch, now=now)
        for field, build_file in (("output_file_id", new_output_file), ("error_file_id", new_error_file))
        if getattr(batch, field) is None
    }
    plan = plan_retry(
        read_first_plan(store, batch.id),
        lines,
        max_requests=settings.chunk_requests,
        max_bytes=settings.chunk_bytes,
        senders=settings.sender_processes,
        completed=completed,
    )
    token = uuid.uuid4().hex
    generation = _next_free_generation(services, batch)
    key = layout.retry_plan_key(batch.id, generation, token)
    with _cleanup_on_failure(services, batch.id, key, layout.first_final_prefix(batch.id, token)) as prefixes:
        store.put(key, msgspec.json.encode(plan))
        base_prefix = _archive_first_files(services, batch, token)
        base_keys = layout.final_keys(base_prefix)
        files = ((batch.output_file_id, base_keys.output), (batch.error_file_id, base_keys.errors))
        # One transaction: it checks the generation, points the file records to the archived files, and cancels the
        # scheduled deletions.
        return services.records.retry(
            batch.id,
            now=now,
            generation=batch.generation,
            next_generation=generation,
            file_changes=FileChanges(
                added=tuple(new_files.values()),
                changed={file_id: {"key": file_key} for file_id, file_key in files if file_id is not None},
                unscheduled_deletions=prefixes,
            ),
            needed_file_ids=[batch.input_file_id, *(file_id for file_id, _ in files if file_id is not None)],
            open_batch_limit=open_batch_limit,
            expires_at=now + settings.require_window_s(batch.completion_window),
            completed=batch.completed - completed,
            failed=batch.not_completed - (len(lines) - completed) - unanswered,
            unanswered=unanswered,
            plan_key=key,
            final_prefix=base_prefix,
            **{field: file.id for field, file in new_files.items()},
        )


def _next_free_generation(services: Services, batch: BatchRecord) -> int:
    """Return the next generation of which nothing is on storage."""
    # A record restored from a backup may have been retried before with another plan; its parts must not be used.
    keys = (info.key for info in services.store.list_objects(layout.batch_prefix(batch.id)))
    used_generations = {number for key in keys if (number := layout.generation_of(key)) is not None}
    return 1 + max(used_generations | {batch.generation})


@contextmanager
def _cleanup_on_failure(services: Services, batch_id: str, *prefixes: str) -> Iterator[tuple[str, ...]]:
    """Schedule deletion of the prefixes before they are written; delete them now if another retry came first."""
    due_at = int(time.time()) + PREPARATION_TIMEOUT_S
    deletions = [PendingDeletion(prefix=prefix, due_at=due_at) for prefix in prefixes]
    for deletion in deletions:
        services.records.schedule_deletion(deletion)
    try:
        yield prefixes
    except (Conflict, NotFound):
        # Not after a `StorageFault`: the retry may have been committed, and housekeeping decides.
        with suppress(StorageFault, NotFound):  # then housekeeping deletes them
            if services.records.get_batch(batch_id).plan_key not in prefixes:
                for deletion in deletions:
                    delete_objects(services, deletion)
        raise


def _archive_first_files(services: Services, batch: BatchRecord, token: str) -> str:
    """Copy a first generation's files away from the public keys, which a retry overwrites; return their prefix."""
    current_prefix = batch.final_prefix or layout.batch_prefix(batch.id)
    if current_prefix != layout.batch_prefix(batch.id):
        return current_prefix
    archive_prefix = layout.first_final_prefix(batch.id, token)
    for key, target in zip(layout.final_keys(current_prefix), layout.final_keys(archive_prefix), strict=True):
        services.store.copy(key, target)
    return archive_prefix
