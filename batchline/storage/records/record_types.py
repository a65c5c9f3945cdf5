"""Types of the records, and their conversion to and from table rows and API objects."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
from pydantic import TypeAdapter
from sqlalchemy import Row

from batchline.models.analytics import BatchAnalytics
from batchline.models.api_keys import KeyObject, MemberObject, Role
from batchline.models.batches import (
    BatchDwExtResponse,
    BatchError,
    BatchErrors,
    BatchPause,
    BatchResponse,
    BatchUsage,
    PauseCode,
    RequestCounts,
)
from batchline.models.files import FileObject, FilePurpose
from batchline.models.options import BatchOptions, GivenOptions, OnLimit
from batchline.models.status import BatchStatus
from batchline.storage.records.lease_owners import has_owner_ended

_Record = TypeVar("_Record", bound=msgspec.Struct)


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A file: the fields that the API shows, and the key of its content."""

    id: str
    purpose: FilePurpose
    filename: str
    size_bytes: int
    created_at: int
    key: str
    status: str
    expires_at: int | None = None
    sha256: str | None = None
    member_id: str | None = None

    @property
    def is_error_file(self) -> bool:
        """True for a batch's error file, which has the purpose of an output file."""
        return self.purpose != "batch" and self.key.rpartition("/")[2] == "errors.jsonl"

    def to_object(self) -> FileObject:
        """Return the file as the API shows it."""
        return FileObject.model_validate({**msgspec.structs.asdict(self), "bytes": self.size_bytes}, strict=False)


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A batch: the fields that the API shows, its lease, its flow runs and its owner."""

    id: str
    status: BatchStatus
    endpoint: str
    input_file_id: str
    input_filename: str
    completion_window: str
    created_at: int
    expires_at: int
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    unanswered: int = 0
    """Requests that had no result when the batch expired or was cancelled."""

    model: str | None = None
    """The model, if all requests name the same one."""

    metadata: dict[str, str] | None = None
    errors: tuple[BatchError, ...] | None = None
    analytics: BatchAnalytics | None = None
    dwext: BatchDwExtResponse | None = None
    member_id: str | None = None
    flow_run_id: str | None = None
    generation: int = 0
    epoch: int = 0
    lease_owner: str | None = None
    lease_at: float | None = None
    output_expires_after: int | None = None
    plan_key: str | None = None
    """Key of the plan of a retry; None for the first generation, whose plan has a fixed key."""

    final_prefix: str | None = None
    """Prefix of the final files of the last finished generation."""

    last_flow_run_id: str | None = None
    """The last flow run that ran the batch; `flow_run_id` is the one that created it."""

    announced_at: int | None = None
    """Time at which the batch's end was announced in Prefect."""

    paused_at: int | None = None
    pause_code: PauseCode | None = None
    pause_message: str | None = None
    pauses: int = 0
    """The number of times that the batch was paused; with its id it names a pause."""

    options: BatchOptions | None = None
    """The options that were given, or None if there were none."""

    default_on_limit: OnLimit | None = None
    """The `on_limit` of the batch if none was given; None for the one of `BatchOptions`."""

    @property
    def effective_options(self) -> BatchOptions:
        """The options that apply to the batch: those that were given, and defaults for the others."""
        options = self.options or BatchOptions()
        return options if self.default_on_limit is None else options.with_default_on_limit(self.default_on_limit)

    @property
    def pause(self) -> BatchPause | None:
        """The pause, or None if the batch is not paused."""
        if self.paused_at is None or self.pause_code is None:
            return None
        return BatchPause(at=self.paused_at, code=self.pause_code, message=self.pause_message or "")

    def is_waiting(self, *, now: float, max_paused_s: float) -> bool:
        """Return True while the batch is paused, for `max_paused_s` at most; by the database's clock."""
        return self.paused_at is not None and now < self.paused_at + max_paused_s

    @property
    def ended_at(self) -> int:
        """Time of the end in Unix seconds; 0 if the batch is not finished."""
        ends = (self.completed_at, self.failed_at, self.expired_at, self.cancelled_at)
        return max((timestamp for timestamp in ends if timestamp is not None), default=0)

    @property
    def not_completed(self) -> int:
        """The number of requests of a finished batch that can be retried."""
        return self.failed + self.unanswered

    def is_leased(self, *, now: float, lease_s: float) -> bool:
        """Return True if the lease is younger than `lease_s` and its owner is not known to have ended.

        `now` is the time of the database's clock.
        """
        if self.lease_owner is None or self.lease_at is None or now - self.lease_at > lease_s:
            return False
        return not has_owner_ended(self.lease_owner)

    def to_response(self, *, include_analytics: bool = False) -> BatchResponse:
        """Return the batch as the API shows it."""
        fields = {
            name: getattr(self, name) for name in BatchResponse.model_fields if name in self.__struct_fields__
        }
        fields["errors"] = BatchErrors(data=list(self.errors)) if self.errors else None
        fields["request_counts"] = RequestCounts(total=self.total, completed=self.completed, failed=self.failed)
        fields["usage"] = None if self.analytics is None else BatchUsage.from_analytics(self.analytics)
        fields["paused"] = self.pause
        if not include_analytics:
            fields["analytics"] = None
        return BatchResponse(**fields)


class PendingDeletion(msgspec.Struct, frozen=True, kw_only=True):
    """Objects to delete at `due_at` (Unix seconds).

    All below `prefix` except those below `kept`; or a single object, if `prefix` does not end in a slash.
    """

    prefix: str
    due_at: int
    kept: str | None = None


class FileChanges(msgspec.Struct, frozen=True, kw_only=True):
    """Changes to file records that are made in one transaction with a change of a batch."""

    added: tuple[FileRecord, ...] = ()
    changed: Mapping[str, Mapping[str, object]] = {}
    deleted: tuple[str, ...] = ()
    scheduled_deletions: tuple[PendingDeletion, ...] = ()
    unscheduled_deletions: tuple[str, ...] = ()


class OpenBatchLimit(msgspec.Struct, frozen=True):
    """The maximum number of unfinished batches of a member."""

    member_id: str | None
    max_open: int


class Idempotency(msgspec.Struct, frozen=True):
    """Digests of an idempotency key and of the request that uses it."""

    key: str
    request: str


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An API key, without its token, and its member; a limit of None does not apply."""

    id: str
    sha256: str
    hint: str
    member_id: str
    name: str
    role: Role
    created_at: int
    revoked_at: int | None = None
    max_upload_bytes: int | None = None
    max_open_batches: int | None = None
    requests_per_minute: int | None = None

    def to_object(self) -> KeyObject:
        """Return the key as the API shows it."""
        member = MemberObject(id=self.member_id, name=self.name, role=self.role)
        return KeyObject.model_validate({**msgspec.structs.asdict(self), "member": member})


class Lease(msgspec.Struct, frozen=True):
    """The right to run a batch; each claim increases the epoch by one."""

    batch_id: str
    owner: str
    epoch: int


class SyncedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A version of a source's file, and the batch that was made from it."""

    id: str
    source_id: str
    uri: str
    version: str
    batch_id: str
    sync_id: str
    taken_at: int
    writes_back: bool
    place: str
    """The prefix of the names of its results."""

    started_at: int | None = None
    written_generation: int | None = None


_JSON_COLUMNS: Mapping[str, TypeAdapter[Any]] = {
    "metadata": TypeAdapter(dict[str, str]),
    "errors": TypeAdapter(tuple[BatchError, ...]),
    "analytics": TypeAdapter(BatchAnalytics),
    "dwext": TypeAdapter(BatchDwExtResponse),
    "options": TypeAdapter(GivenOptions),
}


def to_columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields as column values."""
    return {
        name: _JSON_COLUMNS[name].dump_json(value).decode()
        if name in _JSON_COLUMNS and value is not None
        else value
        for name, value in fields.items()
    }


def record_from_row(record_type: type[_Record], row: Row[Any]) -> _Record:
    """Return the record in a row with columns of its fields' names."""
    return record_type(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it


def batch_from_row(row: Row[Any]) -> BatchRecord:
    """Return the batch in a row of the table."""
    fields = dict(row._mapping)  # noqa: SLF001 - as above
    for name, adapter in _JSON_COLUMNS.items():
        if fields.get(name) is not None:
            fields[name] = adapter.validate_json(fields[name])
    fields["status"] = BatchStatus(fields["status"])
    return BatchRecord(**fields)
