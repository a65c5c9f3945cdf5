"""Runs a sync pass over a watched folder.

A pass writes back results of finished batches, picks up new files and starts batches. If one file fails, the pass
reports it and continues with the others. Each step can be repeated by a later pass, or by two at once:

1. The listed version is copied to our storage; the copy is scheduled for deletion until it is recorded.
2. One transaction records input file, batch and file version; a second pass with the same version is refused.
3. The file is moved (or deleted an hour later) and the batch started; the next pass does what is left undone.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

from batchline.engine.deletion import DELETION_DELAY_S
from batchline.engine.ingest import delete_content, store_input
from batchline.engine.services import Services
from batchline.models.batches import BatchDwExtResponse, BatchError, CreateBatchRequest, validate_metadata
from batchline.models.errors import BatchlineError, Conflict, Interrupted, InvalidInput, NotFound, SourceFault
from batchline.models.ids import new_sync_id
from batchline.models.status import BatchStatus
from batchline.models.sync import SyncEvent, SyncEventKind, SyncOptions, SyncSummary, summarize_events
from batchline.steps.validate_lines import validate_lines
from batchline.storage.records.store import BatchRecord, FileRecord, SyncedFile, SyncedVersion, synced_file_id
from batchline.sync.folder import (
    OUTBOX_FOLDER,
    QUARANTINE_FOLDER,
    TAKEN_FOLDER,
    WatchedFile,
    WatchedFolder,
    jsonl_suffix,
    short_stem,
)
from batchline.sync.outbox import write_results
from batchline.sync.select import open_watched_folder

MAX_ERRORS_PER_FILE: Final = 100_000
"""Maximum errors reported per file, to bound the memory used for a file in another format."""

MAX_NAME_BYTES: Final = 240
"""Longer names leave no room for the suffix `.errors.json`."""

DELETE_AFTER_S: Final = DELETION_DELAY_S
"""Seconds after a file's batch was recorded until the file may be deleted from the watched folder."""

NewBatch = Callable[[CreateBatchRequest, FileRecord, BatchDwExtResponse], BatchRecord]
"""A function that builds the record of a new batch without storing it; raises `InvalidInput`."""

StartBatch = Callable[[str], object]
"""A function that starts a batch by id; raises `Conflict` if it has started. May be called repeatedly."""


def sync_source(
    services: Services,
    uri: str,
    requested_options: SyncOptions | None = None,
    *,
    new_batch: NewBatch,
    start_batch: StartBatch,
    on_event: Callable[[SyncEvent], object] | None = None,
    dry_run: bool = False,
) -> SyncSummary:
    """Create a batch for each new version of a file in the folder, exactly once, and return a summary.

    `uri` is a folder, or a folder and a pattern (`s3://bucket/inbox/*.jsonl`); `on_event` gets each event as it
    happens. A dry run changes nothing. Raises `InvalidInput` for a folder not below an allowed root or for invalid
    options, `NotFound` if the folder does not exist, `StorageFault` if our storage or records fail.
    """
    chosen = requested_options or SyncOptions()
    if chosen.endpoint is not None:
        services.settings.require_endpoint(chosen.endpoint)
    services.settings.require_window_s(chosen.completion_window)
    try:
        validate_metadata(chosen.metadata)
    except ValueError as error:
        raise InvalidInput(str(error), param="metadata") from None
    folder, pattern = open_watched_folder(uri, services.settings)
    sync_pass = _SyncPass(services, folder, chosen, new_batch, start_batch, dry_run=dry_run)

    def reported_events() -> Iterator[SyncEvent]:
        for event in sync_pass.run(pattern):
            if on_event is not None:
                on_event(event)
            yield event

    return summarize_events(reported_events(), sync_id=sync_pass.sync_id, source=folder.uri, dry_run=dry_run)


class _SyncPass:
    def __init__(
        self,
        services: Services,
        folder: WatchedFolder,
        options: SyncOptions,
        new_batch: NewBatch,
        start_batch: StartBatch,
        *,
        dry_run: bool,
    ) -> None:
        self._services = services
        self._records = services.records
        self._folder = folder
        self._options = options
        self._new_batch = new_batch
        self._start_batch = start_batch
        self._dry_run = dry_run
        self._source_id = str(uuid.uuid5(uuid.NAMESPACE_URL, folder.uri))
        self.sync_id = new_sync_id()

    def run(self, pattern: str) -> Iterator[SyncEvent]:
        """Run the pass and yield its events."""
        yield from self._write_results_back()
        yield from self._pick_up_files(pattern)
        started_ids: set[str] = set()
        for event in self._start_batches():
            started_ids |= {str(event.batch_id)} if event.kind == "started" else set()
            yield event
        # Batches that `start_batch` ran to their end in this process have results by now.
        if started_ids and not self._dry_run:
            yield from self._write_results_back(started_ids)

    # Files

    def _pick_up_files(self, pattern: str) -> Iterator[SyncEvent]:
        files = list(self._folder.list_files(pattern))
        ids = {file.name: self._synced_file_id(file) for file in files}
        synced = self._records.synced_versions(synced_id for synced_id in ids.values() if synced_id)
        for file in files:
            if ids[file.name] is None:
                yield self._file_event("unreadable", file, reason="its name is not UTF-8; rename it")
            elif ids[file.name] in synced:
                yield self._file_event("unchanged", file)
                yield from self._archive_file(file, synced[str(ids[file.name])])
            else:
                yield from self._pick_up_if_unchanged(file)

    def _synced_file_id(self, file: WatchedFile) -> str | None:
        try:
            return synced_file_id(self._folder.uri_of(file.name), file.version)
        except UnicodeEncodeError:
            return None

    def _pick_up_if_unchanged(self, file: WatchedFile) -> Iterator[SyncEvent]:
        min_age_s = self._services.settings.source_still_s
        age_s = min_age_s if file.changed_at is None else time.time() - file.changed_at
        if age_s < min_age_s:
            reason = f"changed {max(0.0, age_s):.0f} s ago; it is picked up once unchanged for {min_age_s:g} s"
            yield self._file_event("waiting", file, reason=reason)
        elif self._dry_run:
            yield self._file_event("taken", file)
        else:
            try:
                yield from self._pick_up(file)
            except (Conflict, NotFound) as error:
                # A concurrent pass may have recorded the same version first.
                synced = self._records.synced_versions([str(self._synced_file_id(file))])
                yield self._file_event("unchanged" if synced else "changed", file, reason=str(error))
            except SourceFault as fault:
                yield self._file_event("unreadable", file, reason=str(fault))

    def _pick_up(self, file: WatchedFile) -> Iterator[SyncEvent]:
        """Create a batch from the listed version, or move it to quarantine."""
        synced_file: SyncedFile | None = None
        stored: FileRecord | None = None
        try:
            with self._folder.open_version(file) as source:
                stored = store_input(self._services, source, filename=file.name, is_recorded=False)
            key = stored.key
            validation = validate_lines(
                lambda: self._services.store.stream(key),
                batch_id="",
                input_key=key,
                endpoint=self._options.endpoint,
                settings=self._services.settings,
                max_errors=MAX_ERRORS_PER_FILE,
            )
            errors = validation.errors
            if validation.plan is not None:
                synced_file = self._record_batch(file, stored, validation.plan.endpoint)
        except InvalidInput as error:
            errors = [BatchError(code="unreadable_file", message=str(error))]
        except (Conflict, NotFound, SourceFault):
            # Not after other faults: the transaction may have been committed, and would refer to the copy.
            self._delete_stored(stored)
            raise
        if synced_file is None:
            self._delete_stored(stored)
            yield from self._quarantine_file(file, errors)
        else:
            is_deleted_later = self._options.after == "delete" and DELETE_AFTER_S > 0
            reason = f"it is deleted {DELETE_AFTER_S / 60:g} minutes from now" if is_deleted_later else None
            yield self._file_event("taken", file, batch_id=synced_file.batch_id, reason=reason)
            yield from self._archive_file(file, SyncedVersion(synced_file.batch_id, synced_file.taken_at))

    def _delete_stored(self, stored: FileRecord | None) -> None:
        if stored is not None:
            delete_content(self._services, stored)

    def _record_batch(self, file: WatchedFile, stored: FileRecord, endpoint: str) -> SyncedFile:
        request = CreateBatchRequest(
            input_file_id=stored.id,
            endpoint=endpoint,
            completion_window=self._options.completion_window,
            metadata=self._options.metadata,
            options=self._options.options,
        )
        origin = BatchDwExtResponse(
            source="sync",
            source_name=self._folder.uri,
            source_id=self._source_id,
            source_file=file.name,
            sync_id=self.sync_id,
        )
        batch = self._new_batch(request, stored, origin)
        uri = self._folder.uri_of(file.name)
        synced_file = SyncedFile(
            id=synced_file_id(uri, file.version),
            source_id=self._source_id,
            uri=uri,
            version=file.version,
            batch_id=batch.id,
            sync_id=self.sync_id,
            taken_at=batch.created_at,
            writes_back=self._options.write_back,
            place=short_stem(file.name),
        )
        return self._records.record_synced_file(synced_file, stored, batch, parent_uri=self._folder.parent_uri)

    def _quarantine_file(self, file: WatchedFile, errors: list[BatchError]) -> Iterator[SyncEvent]:
        """Write the errors, then move the file, so that each file in quarantine has its errors."""
        preferred_name = file.name if len(file.name.encode()) <= MAX_NAME_BYTES else self._versioned_name(file)
        name = self._folder.find_free_name(file, QUARANTINE_FOLDER, (preferred_name, self._versioned_name(file)))
        errors_json = json.dumps({"data": [error.model_dump() for error in errors]}, ensure_ascii=False)
        self._folder.write_to_sibling(
            QUARANTINE_FOLDER, f"{name}.errors.json", [errors_json.encode(errors="backslashreplace")]
        )
        if not self._folder.move_to_sibling(file, QUARANTINE_FOLDER, name):
            raise Conflict("it was deleted or changed after it was read")
        position = f"line {errors[0].line}: " if errors[0].line else ""
        reason = f"{len(errors):,} error{'s' if len(errors) > 1 else ''}, first {position}{errors[0].message}"
        yield self._file_event(
            "quarantined", file, place=self._folder.sibling_uri(QUARANTINE_FOLDER, name), reason=reason
        )

    def _archive_file(self, file: WatchedFile, taken: SyncedVersion) -> Iterator[SyncEvent]:
        """Move or delete a picked-up version, depending on the options."""
        if self._options.after == "keep" or self._dry_run:
            return
        try:
            if self._options.after == "delete":
                yield from self._delete_if_old(file, taken)
                return
            name = self._folder.find_free_name(file, TAKEN_FOLDER, (file.name, self._versioned_name(file)))
            if self._folder.move_to_sibling(file, TAKEN_FOLDER, name):
                yield self._file_event("moved", file, place=self._folder.sibling_uri(TAKEN_FOLDER, name))
        except (SourceFault, NotFound) as fault:
            yield self._file_event("failed", file, reason=f"picked up, but it cannot be moved or deleted: {fault}")

    def _delete_if_old(self, file: WatchedFile, taken: SyncedVersion) -> Iterator[SyncEvent]:
        """Delete the version once its batch's record is old enough to be in every replica of the database."""
        if time.time() - taken.recorded_at < DELETE_AFTER_S:
            return
        # The watched file may be the only copy left if storage lost the input, or part of it.
        has_input = True
        with suppress(NotFound):  # the owner has deleted it
            input_file = self._records.get_file(self._records.get_batch(taken.batch_id).input_file_id)
            try:
                has_input = self._services.store.info(input_file.key).size_bytes == input_file.size_bytes
            except NotFound:
                has_input = False
        if not has_input:
            reason = f"it was taken as {taken.batch_id}, whose input is not on storage; it is not deleted"
            yield self._file_event("failed", file, reason=reason)
        elif self._folder.delete(file):
            yield self._file_event("deleted", file)

    def _versioned_name(self, file: WatchedFile) -> str:
        """Return a name unique to this version of the file."""
        version_digest = synced_file_id(self._folder.uri_of(file.name), file.version)[:12]
        return f"{short_stem(file.name)}.{version_digest}{jsonl_suffix(file.name)}"

    def _file_event(self, kind: SyncEventKind, file: WatchedFile, **fields: str | None) -> SyncEvent:
        uri = self._folder.uri_of(file.name).encode(errors="backslashreplace").decode()
        return SyncEvent(kind=kind, file=uri, **fields)

    # Batches

    def _start_batches(self) -> Iterator[SyncEvent]:
        """Start the batches that this or an earlier pass created but did not start."""
        for batch_id in self._records.unstarted_batches(self._source_id):
            batch = None
            with suppress(NotFound):
                batch = self._records.get_batch(batch_id)
            lease_s = self._services.settings.lease_s
            # Only a batch that exists, has not begun, and that no process holds.
            is_startable = (
                batch is not None
                and batch.status is BatchStatus.VALIDATING
                and not batch.is_leased(now=self._records.now(), lease_s=lease_s)
            )
            if not is_startable:
                self._records.note_started(batch_id, now=int(time.time()))
            elif self._dry_run:
                yield SyncEvent(kind="started", batch_id=batch_id)
            else:
                try:
                    self._start_batch(batch_id)
                except Conflict:  # already started by another process
                    pass
                except BatchlineError as error:
                    yield SyncEvent(kind="failed", batch_id=batch_id, reason=f"it cannot be started: {error}")
                    if isinstance(error, InvalidInput | Interrupted):  # would fail for all other batches too
                        return
                    continue
                # Recorded after the start: a crash in between starts it again, which is harmless.
                self._records.note_started(batch_id, now=int(time.time()))
                yield SyncEvent(kind="started", batch_id=batch_id)

    def _write_results_back(self, only: set[str] | None = None) -> Iterator[SyncEvent]:
        """Write the results of finished batches to the outbox, unless that was done; `only` limits the batches."""
        for synced_file in self._records.pending_write_backs(self._source_id):
            if only is not None and synced_file.batch_id not in only:
                continue
            outbox_uri = self._folder.sibling_uri(OUTBOX_FOLDER, synced_file.place)
            event = SyncEvent(
                kind="written_back", file=synced_file.uri, batch_id=synced_file.batch_id, place=f"{outbox_uri}.*"
            )
            try:
                if self._dry_run or write_results(self._services, self._folder, synced_file):
                    yield event
            except BatchlineError as error:
                reason = f"its results cannot be written back: {error}"
                yield event.model_copy(update={"kind": "failed", "place": None, "reason": reason})
