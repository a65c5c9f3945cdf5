"""A round over a watched folder.

Results of batches that are over go back, new files are taken, batches are started. What fails with one file is
told, and the round goes on with the others. Each step can be done again by a later round, or by two at once:

1. The version that was listed is copied to our storage, where the copy is doomed until it is recorded.
2. One transaction records input file, batch and that version of that file; the second to come is refused.
3. Then the file is moved (or deleted, by a round an hour later), and the batch started; what a round leaves undone
   the next one finds.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Final

from batchline.models.batches import BatchDwExtResponse, BatchError, CreateBatchRequest, checked_metadata
from batchline.models.errors import (
    BatchlineError,
    Conflict,
    Interrupted,
    InvalidInput,
    NotFound,
    SourceFault,
)
from batchline.models.ids import new_sync_id
from batchline.models.settings import Settings
from batchline.models.status import BatchStatus
from batchline.models.sync import SyncEvent, SyncKind, SyncOptions, SyncSummary, summed
from batchline.sources.results import write_results
from batchline.steps.engine import Engine
from batchline.steps.intake import drop_content, new_batch, store_content
from batchline.steps.sweep import KEPT_S
from batchline.steps.validate import validate_input
from batchline.storage.inbox import (
    OUTBOX,
    QUARANTINE,
    TAKEN,
    Inbox,
    InboxFile,
    ending_of,
    open_inbox,
    stem_of,
)
from batchline.storage.records import BatchRecord, FileRecord, SourceFile, Taken, source_file_id

MOST_ERRORS: Final = 100_000
"""Of one file; a notice takes the place of more, so that a file of another kind cannot fill the memory."""

MOST_NAME_BYTES: Final = 240
"""Longer names have no room for the end that the name of their errors gets."""

DELETED_AFTER_S: Final = KEPT_S
"""Seconds from the record of a file's batch until the file may be deleted from the watched folder."""

Start = Callable[[str], object]
"""Starts the batch of that id; raises `Conflict` where another has. It may be called again for the same batch."""


def sync_source(
    engine: Engine,
    uri: str,
    options: SyncOptions | None = None,
    *,
    start: Start,
    tell: Callable[[SyncEvent], object] | None = None,
    dry_run: bool = False,
) -> SyncSummary:
    """Make a batch of each new version of a file in the folder, exactly once, and return what came of the round.

    `uri` is a folder, or a folder and a pattern (`s3://bucket/inbox/*.jsonl`); `tell` hears of each event as it
    happens. A dry run only looks. Raises `InvalidInput` for a folder below no allowed root or for options that
    cannot be, `NotFound` where there is no such folder, `StorageFault` where our storage or records fail.
    """
    chosen = options or SyncOptions()
    _check(engine.settings, chosen)
    inbox, pattern = open_inbox(uri, engine.settings)
    one = _Round(engine, inbox, chosen, start, dry_run=dry_run)

    def told() -> Iterator[SyncEvent]:
        for event in one.events(pattern):
            if tell is not None:
                tell(event)
            yield event

    return summed(told(), sync_id=one.sync_id, source=inbox.uri, dry_run=dry_run)


def _check(settings: Settings, options: SyncOptions) -> None:
    if options.endpoint is not None:
        settings.checked_endpoint(options.endpoint)
    settings.checked_window_s(options.completion_window)
    try:
        checked_metadata(options.metadata)
    except ValueError as error:
        raise InvalidInput(str(error), param="metadata") from None


class _Round:
    def __init__(self, engine: Engine, inbox: Inbox, options: SyncOptions, start: Start, *, dry_run: bool) -> None:
        self._engine = engine
        self._records = engine.records
        self._inbox = inbox
        self._options = options
        self._start = start
        self._dry_run = dry_run
        self._source_id = str(uuid.uuid5(uuid.NAMESPACE_URL, inbox.uri))
        self.sync_id = new_sync_id()

    def events(self, pattern: str) -> Iterator[SyncEvent]:
        """Do the round."""
        yield from self._write_back()
        yield from self._take_all(pattern)
        started: set[str] = set()
        for event in self._start_all():
            started |= {str(event.batch_id)} if event.kind == "started" else set()
            yield event
        if started and not self._dry_run:
            yield from self._write_back(started)

    # Files

    def _take_all(self, pattern: str) -> Iterator[SyncEvent]:
        found = list(self._inbox.files(pattern))
        ids = {file.name: self._id(file) for file in found}
        taken = self._records.taken(each for each in ids.values() if each)
        for file in found:
            if ids[file.name] is None:
                yield self._event("unreadable", file, reason="its name is not UTF-8; rename it")
            elif ids[file.name] in taken:
                yield self._event("unchanged", file)
                yield from self._put_away(file, taken[str(ids[file.name])])
            else:
                yield from self._take_if_still(file)

    def _id(self, file: InboxFile) -> str | None:
        try:
            return source_file_id(self._inbox.uri_of(file.name), file.version)
        except UnicodeEncodeError:
            return None

    def _take_if_still(self, file: InboxFile) -> Iterator[SyncEvent]:
        still_s = self._engine.settings.source_still_s
        age_s = still_s if file.changed_at is None else time.time() - file.changed_at
        if age_s < still_s:
            reason = f"changed {max(0.0, age_s):.0f} s ago; it is taken once it has been still for {still_s:g} s"
            yield self._event("waiting", file, reason=reason)
        elif self._dry_run:
            yield self._event("taken", file)
        else:
            try:
                yield from self._take(file)
            except (Conflict, NotFound) as error:
                taken = self._records.taken([str(self._id(file))])  # by another round, at the same time
                yield self._event("unchanged" if taken else "changed", file, reason=str(error))
            except SourceFault as fault:
                yield self._event("unreadable", file, reason=str(fault))

    def _take(self, file: InboxFile) -> Iterator[SyncEvent]:
        """Make a batch of that version, or put it into quarantine."""
        picked: SourceFile | None = None
        stored: FileRecord | None = None
        try:
            with self._inbox.opened(file) as source:
                stored = store_content(self._engine, source, filename=file.name)
            errors, endpoint = self._checked(stored)
            if not errors:
                picked = self._record(file, stored, endpoint)
        except InvalidInput as error:
            errors = [BatchError(code="unreadable_file", message=str(error))]
        except (Conflict, NotFound, SourceFault):  # after another fault the record may have been made
            self._drop(stored)
            raise
        if picked is None:
            self._drop(stored)
            yield from self._quarantine(file, errors)
        else:
            deletes = self._options.after == "delete" and DELETED_AFTER_S > 0
            reason = f"a round deletes it {DELETED_AFTER_S / 60:g} minutes from now" if deletes else None
            yield self._event("taken", file, batch_id=picked.batch_id, reason=reason)
            yield from self._put_away(file, Taken(picked.batch_id, picked.taken_at))

    def _drop(self, stored: FileRecord | None) -> None:
        if stored is not None:
            drop_content(self._engine, stored)

    def _checked(self, stored: FileRecord) -> tuple[list[BatchError], str]:
        """What is wrong with the stored copy, and the endpoint of its requests."""
        found = validate_input(
            lambda: self._engine.store.stream(stored.key),
            batch_id="",
            input_key=stored.key,
            endpoint=self._options.endpoint,
            settings=self._engine.settings,
            max_errors=MOST_ERRORS,
        )
        return found.errors, "" if found.plan is None else found.plan.endpoint

    def _record(self, file: InboxFile, stored: FileRecord, endpoint: str) -> SourceFile:
        batch = self._batch(file, stored, endpoint)
        uri = self._inbox.uri_of(file.name)
        picked = SourceFile(
            id=source_file_id(uri, file.version),
            source_id=self._source_id,
            uri=uri,
            version=file.version,
            batch_id=batch.id,
            sync_id=self.sync_id,
            taken_at=batch.created_at,
            writes_back=self._options.write_back,
            place=stem_of(file.name),
        )
        return self._records.take(picked, stored, batch, beside=self._inbox.beside)

    def _batch(self, file: InboxFile, stored: FileRecord, endpoint: str) -> BatchRecord:
        request = CreateBatchRequest(
            input_file_id=stored.id,
            endpoint=endpoint,
            completion_window=self._options.completion_window,
            metadata=self._options.metadata,
        )
        origin = BatchDwExtResponse(
            source="sync",
            source_name=self._inbox.uri,
            source_id=self._source_id,
            source_file=file.name,
            sync_id=self.sync_id,
        )
        return new_batch(self._engine.settings, request, stored, origin=origin)

    def _quarantine(self, file: InboxFile, errors: list[BatchError]) -> Iterator[SyncEvent]:
        """Write the errors, then move the file beside them: a file in quarantine always has its errors."""
        first = file.name if len(file.name.encode()) <= MOST_NAME_BYTES else self._other_name(file)
        name = self._inbox.free_name(file, QUARANTINE, (first, self._other_name(file)))
        text = json.dumps({"data": [error.model_dump() for error in errors]}, ensure_ascii=False)
        self._inbox.write(QUARANTINE, f"{name}.errors.json", [text.encode(errors="backslashreplace")])
        if not self._inbox.move(file, QUARANTINE, name):
            raise Conflict("it has gone or changed since it was read")
        where = f"line {errors[0].line}: " if errors[0].line else ""
        reason = f"{len(errors):,} error{'s' if len(errors) > 1 else ''}, first {where}{errors[0].message}"
        yield self._event("quarantined", file, place=self._inbox.place_of(QUARANTINE, name), reason=reason)

    def _put_away(self, file: InboxFile, taken: Taken) -> Iterator[SyncEvent]:
        """Move or delete a version that a batch was made of, as the options say."""
        if self._options.after == "keep" or self._dry_run:
            return
        try:
            if self._options.after == "delete":
                yield from self._delete(file, taken)
                return
            name = self._inbox.free_name(file, TAKEN, (file.name, self._other_name(file)))
            if self._inbox.move(file, TAKEN, name):
                yield self._event("moved", file, place=self._inbox.place_of(TAKEN, name))
        except (SourceFault, NotFound) as fault:
            yield self._event("failed", file, reason=f"it was taken and cannot be put away: {fault}")

    def _delete(self, file: InboxFile, taken: Taken) -> Iterator[SyncEvent]:
        """Delete the version once the record of its batch is old enough to be on every copy of the database."""
        if time.time() - taken.at < DELETED_AFTER_S:
            return
        if not self._has_input(taken.batch_id):
            reason = f"it was taken as {taken.batch_id}, whose input is not on storage; it is not deleted"
            yield self._event("failed", file, reason=reason)
        elif self._inbox.delete(file):
            yield self._event("deleted", file)

    def _has_input(self, batch_id: str) -> bool:
        """False if the batch's input should be on storage and is not."""
        try:
            stored = self._records.get_file(self._records.get_batch(batch_id).input_file_id)
        except NotFound:  # deleted by its owner since
            return True
        try:
            return self._engine.store.info(stored.key).size_bytes == stored.size_bytes
        except NotFound:
            return False

    def _other_name(self, file: InboxFile) -> str:
        """A name that only this version of the file has."""
        version = source_file_id(self._inbox.uri_of(file.name), file.version)[:12]
        return f"{stem_of(file.name)}.{version}{ending_of(file.name)}"

    def _event(self, kind: SyncKind, file: InboxFile, **fields: str | None) -> SyncEvent:
        uri = self._inbox.uri_of(file.name).encode(errors="backslashreplace").decode()
        return SyncEvent(kind=kind, file=uri, **fields)

    # Batches

    def _start_all(self) -> Iterator[SyncEvent]:
        """Start what this round made, and what an earlier one made and did not come to start."""
        for batch_id in self._records.unstarted(self._source_id):
            if not self._waits(batch_id):
                self._records.note_started(batch_id, now=int(time.time()))
            elif self._dry_run:
                yield SyncEvent(kind="started", batch_id=batch_id)
            else:
                try:
                    self._start(batch_id)
                except Conflict:  # another has started it
                    pass
                except BatchlineError as error:
                    yield SyncEvent(kind="failed", batch_id=batch_id, reason=f"it cannot be started: {error}")
                    if isinstance(error, InvalidInput | Interrupted):  # the others would fare no better
                        return
                    continue
                self._records.note_started(batch_id, now=int(time.time()))
                yield SyncEvent(kind="started", batch_id=batch_id)

    def _waits(self, batch_id: str) -> bool:
        """Whether the batch waits for somebody to start it."""
        try:
            batch = self._records.get_batch(batch_id)
        except NotFound:
            return False
        held = batch.is_held(now=self._records.now(), lease_s=self._engine.settings.lease_s)
        return batch.status is BatchStatus.VALIDATING and not held

    def _write_back(self, only: set[str] | None = None) -> Iterator[SyncEvent]:
        """Write the results of batches that are over, and were not written back yet, to the outbox."""
        for picked in self._records.to_write_back(self._source_id):
            if only is not None and picked.batch_id not in only:
                continue
            place = self._inbox.place_of(OUTBOX, picked.place)
            event = SyncEvent(kind="written_back", file=picked.uri, batch_id=picked.batch_id, place=f"{place}.*")
            try:
                if self._dry_run or write_results(self._engine, self._inbox, picked):
                    yield event
            except BatchlineError as error:
                reason = f"its results cannot be written back: {error}"
                yield event.model_copy(update={"kind": "failed", "place": None, "reason": reason})
