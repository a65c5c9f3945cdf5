"""Puts failed requests of a finished batch back to pending: a generation of its own, laid over the one before."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from batchline.models.errors import Conflict, InvalidInput, NotFound, StorageFault
from batchline.models.failures import UNANSWERED
from batchline.models.ids import request_prefix
from batchline.models.plan import retry_plan
from batchline.models.status import TERMINAL
from batchline.steps.engine import Engine
from batchline.steps.lifecycle import new_error_file, new_output_file
from batchline.steps.merge import row_groups
from batchline.steps.plans import whole_plan
from batchline.steps.sweep import sweep
from batchline.steps.write import Manifest, read_manifest
from batchline.storage import layout
from batchline.storage.records import BatchRecord, Doomed, FileChanges, Room

if TYPE_CHECKING:
    import numpy as np

NAMED_AT_MOST = 5
MADE_WITHIN_S = 86_400
"""How long the making of a retry may take; what is not needed by then is swept away."""


def retry_batch(
    engine: Engine, batch_id: str, request_ids: Sequence[str] | None = None, *, room: Room | None = None
) -> BatchRecord:
    """Put the named failed requests of a finished batch back to pending, all of them by default; its record.

    The batch is `in_progress` with a new window; somebody has to run it. Raises `Conflict` for a batch that is
    not over or has nothing to retry, `InvalidInput` for an id that is unknown, of another batch or of a request
    that did not fail, `NotFound` where the input is gone, and `LimitReached` where the `room` for open batches is
    taken up; then nothing has changed.
    """
    batch = engine.records.get_batch(batch_id)
    if batch.status not in TERMINAL:
        raise Conflict(f"batch {batch.id} is {batch.status}; only a batch that is over can be retried")
    if batch.final_prefix is None or not batch.not_completed:
        raise Conflict(f"batch {batch.id} has nothing to retry: {_why_nothing(batch)}")
    base = read_manifest(engine.store, batch.final_prefix)
    _check_files(engine, batch, base)
    lines, ok, unanswered = _outcomes(engine, base)
    chosen = lines[~ok].tolist() if request_ids is None else _chosen(batch, request_ids, lines, ok)
    left = len(set(lines[unanswered].tolist()).difference(chosen))
    return _start(engine, batch, chosen, room, unanswered=left)


def request_ids_of(engine: Engine, batch: BatchRecord, names: Sequence[str]) -> list[str]:
    """Return the names with the batch's custom_ids replaced by request ids; other names stay as they are."""
    prefix = request_prefix(batch.id)
    wanted = {name for name in names if not name.startswith(prefix)}
    if not wanted or batch.final_prefix is None:
        return list(names)
    found: dict[str, str] = {}
    key = layout.final_keys(batch.final_prefix).requests
    for table in row_groups(engine.store, key, columns=("line", "custom_id")):
        for line, custom_id in zip(table["line"].to_pylist(), table["custom_id"].to_pylist(), strict=True):
            if custom_id in wanted:
                found[custom_id] = f"{prefix}{line}"
    return [found.get(name, name) for name in names]


def _why_nothing(batch: BatchRecord) -> str:
    return "no request was sent" if batch.final_prefix is None else "every request succeeded"


def _check_files(engine: Engine, batch: BatchRecord, base: Manifest) -> None:
    """Raise unless all is there that the retry has to read."""
    file = engine.records.get_file(batch.input_file_id)
    if not engine.store.exists(file.key):
        raise NotFound(f"the content of input file {file.id} is gone; upload it again and start a new batch")
    keys = layout.final_keys(base.prefix)
    for key, size in ((keys.output, base.output_bytes), (keys.errors, base.errors_bytes)):
        if size and not engine.store.exists(key):
            raise Conflict(
                f"batch {batch.id} cannot be retried: a file of its results was deleted; start a new batch from "
                "its input file"
            )


def _outcomes(engine: Engine, base: Manifest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lines of all requests, ascending; whether each succeeded; and whether it was left unanswered."""
    import numpy as np  # noqa: PLC0415 - half a second that must not delay other commands
    import pyarrow as pa  # noqa: PLC0415 - as above
    import pyarrow.compute as pc  # noqa: PLC0415 - as above

    key = layout.final_keys(base.prefix).requests
    tables = list(row_groups(engine.store, key, columns=("line", "ok", "error_code")))
    codes = pa.array(sorted(UNANSWERED), pa.string())
    unanswered = [pc.is_in(table["error_code"].cast(pa.string()), codes) for table in tables]
    return (
        np.concatenate([table["line"].to_numpy() for table in tables]),
        np.concatenate([table["ok"].to_numpy(zero_copy_only=False) for table in tables]),
        np.concatenate([each.to_numpy(zero_copy_only=False) for each in unanswered]),
    )


def _chosen(batch: BatchRecord, request_ids: Sequence[str], lines: np.ndarray, ok: np.ndarray) -> list[int]:
    """The lines of the named requests, ascending; raises `InvalidInput` unless each is one that failed."""
    outcomes = dict(zip(lines.tolist(), ok.tolist(), strict=True))
    prefix = request_prefix(batch.id)
    wrong: list[str] = []
    chosen: set[int] = set()
    for request_id in request_ids:
        number = request_id.removeprefix(prefix)
        line = int(number) if number.isascii() and number.isdecimal() and len(number) < 19 else 0
        if not request_id.startswith(prefix):
            wrong.append(f"{request_id[:80]!r} is no request of this batch and no custom_id in it")
        elif line not in outcomes or str(line) != number:
            wrong.append(f"{request_id[:80]!r} is unknown")
        elif outcomes[line]:
            wrong.append(f"{request_id!r} has not failed")
        else:
            chosen.add(line)
    if not request_ids:
        wrong.append("no request is named")
    if wrong:
        more = f"; and {len(wrong) - NAMED_AT_MOST} more" if len(wrong) > NAMED_AT_MOST else ""
        raise InvalidInput(
            f"batch {batch.id} is left as it is: {'; '.join(wrong[:NAMED_AT_MOST])}{more}", param="request_ids"
        )
    return sorted(chosen)


def _start(
    engine: Engine, batch: BatchRecord, lines: list[int], room: Room | None, *, unanswered: int
) -> BatchRecord:
    """Write the retry's plan and make the batch `in_progress` with it.

    Of the requests that it leaves as they are, `unanswered` had no answer and the others failed.
    """
    settings, store, now = engine.settings, engine.store, int(time.time())
    new_files = {
        field: make(batch, now=now)
        for field, make in (("output_file_id", new_output_file), ("error_file_id", new_error_file))
        if getattr(batch, field) is None
    }
    plan = retry_plan(
        whole_plan(store, batch.id),
        lines,
        most_requests=settings.chunk_requests,
        most_bytes=settings.chunk_bytes,
        senders=settings.senders,
    )
    token = uuid.uuid4().hex
    generation = _free_generation(engine, batch)
    key = layout.retry_plan_key(batch.id, generation, token)
    with _undone_unless_needed(engine, batch.id, key, layout.first_prefix(batch.id, token)) as made:
        store.put(key, msgspec.json.encode(plan))
        base = _aside(engine, batch, token)
        return engine.records.retry(
            batch.id,
            now=now,
            generation=batch.generation,
            next_generation=generation,
            file_changes=FileChanges(added=tuple(new_files.values()), changed=_moved(batch, base), absolved=made),
            needs=[each for each in (batch.input_file_id, batch.output_file_id, batch.error_file_id) if each],
            room=room,
            expires_at=now + settings.checked_window_s(batch.completion_window),
            failed=batch.not_completed - len(lines) - unanswered,
            unanswered=unanswered,
            plan_key=key,
            final_prefix=base,
            **{field: file.id for field, file in new_files.items()},
        )


def _free_generation(engine: Engine, batch: BatchRecord) -> int:
    """The next generation of which nothing is on storage.

    A record that came back from a backup may have been retried before with another plan, whose parts are not ours.
    """
    keys = (info.key for info in engine.store.find(layout.batch_prefix(batch.id)))
    used = {number for key in keys if (number := layout.generation_of(key)) is not None}
    return 1 + max(used | {batch.generation})


@contextmanager
def _undone_unless_needed(engine: Engine, batch_id: str, *made: str) -> Iterator[tuple[str, ...]]:
    """Doom what is written below those prefixes first, and delete it at once if another retry came first.

    After a `StorageFault` the retry may have been made: its plan is left to housekeeping.
    """
    due_at = int(time.time()) + MADE_WITHIN_S
    doomed = [Doomed(prefix=prefix, due_at=due_at) for prefix in made]
    for each in doomed:
        engine.records.doom(each)
    try:
        yield made
    except (Conflict, NotFound):
        with suppress(StorageFault, NotFound):  # then later housekeeping does
            if engine.records.get_batch(batch_id).plan_key not in made:
                for each in doomed:
                    sweep(engine, each)
        raise


def _aside(engine: Engine, batch: BatchRecord, token: str) -> str:
    """Where the batch's files are that the retry is laid over: not where everybody finds the newest ones."""
    found = batch.final_prefix or layout.batch_prefix(batch.id)
    if found != layout.batch_prefix(batch.id):
        return found
    prefix = layout.first_prefix(batch.id, token)
    for key, target in zip(layout.final_keys(found), layout.final_keys(prefix), strict=True):
        engine.store.copy(key, target)
    return prefix


def _moved(batch: BatchRecord, prefix: str) -> dict[str, dict[str, object]]:
    """The file records' keys below that prefix."""
    keys = layout.final_keys(prefix)
    ids = {batch.output_file_id: keys.output, batch.error_file_id: keys.errors}
    return {file_id: {"key": key} for file_id, key in ids.items() if file_id is not None}
