"""Records of files and batches: who may change what, each change one atomic statement."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from pydantic import TypeAdapter
from sqlalchemy import Connection, Engine, Row, Table, Update, insert, or_, select, update
from sqlalchemy import delete as delete_from
from sqlalchemy.exc import IntegrityError

from batchline.models.analytics import BatchAnalytics
from batchline.models.batches import (
    BatchDwExtResponse,
    BatchError,
    BatchErrors,
    BatchListResponse,
    BatchResponse,
    ListBatchesQuery,
    RequestCounts,
)
from batchline.models.errors import Conflict, LeaseLost, NotFound
from batchline.models.files import FileObject, FilePurpose
from batchline.models.settings import Settings
from batchline.models.status import BatchStatus, sources_of, timestamp_field
from batchline.storage.database import open_database, retried, upgrade_database
from batchline.storage.listing import list_statement
from batchline.storage.schema import batches, files

__all__ = ["BatchRecord", "FileRecord", "Lease", "Records", "open_records", "upgrade_database"]

_T = TypeVar("_T")


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A stored file: what people see, and the key of its content."""

    id: str
    purpose: FilePurpose
    filename: str
    size_bytes: int
    created_at: int
    key: str
    status: str
    expires_at: int | None = None
    sha256: str | None = None

    def to_object(self) -> FileObject:
        """What the API shows of it."""
        return FileObject.model_validate({**msgspec.structs.asdict(self), "bytes": self.size_bytes}, strict=False)


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A batch as it is kept: what people see, who runs it, and where it belongs."""

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

    def to_response(self, *, include_analytics: bool = False) -> BatchResponse:
        """What the API shows of it."""
        fields = {
            name: getattr(self, name) for name in BatchResponse.model_fields if name in self.__struct_fields__
        }
        fields["errors"] = BatchErrors(data=list(self.errors)) if self.errors else None
        fields["request_counts"] = RequestCounts(total=self.total, completed=self.completed, failed=self.failed)
        if not include_analytics:
            fields["analytics"] = None
        return BatchResponse(**fields)


class Lease(msgspec.Struct, frozen=True):
    """The right to run a batch: the epoch is one higher each time that it changes hands."""

    batch_id: str
    owner: str
    epoch: int


_JSON: Mapping[str, TypeAdapter[Any]] = {
    "metadata": TypeAdapter(dict[str, str]),
    "errors": TypeAdapter(tuple[BatchError, ...]),
    "analytics": TypeAdapter(BatchAnalytics),
    "dwext": TypeAdapter(BatchDwExtResponse),
}


class Records:
    """Files and batches in a database that several processes share; may be used from any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        self._engine.dispose()

    def add_file(self, record: FileRecord) -> None:
        """Record a file."""
        self._write(lambda connection: connection.execute(insert(files).values(**msgspec.structs.asdict(record))))

    def get_file(self, file_id: str) -> FileRecord:
        """The file; raises `NotFound`."""
        row = self._read(lambda connection: _row(connection, files, file_id))
        if row is None:
            raise NotFound(f"there is no file {file_id}")
        return FileRecord(**row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it

    def update_file(self, file_id: str, **fields: object) -> None:
        """Change a file's record."""
        self._write(
            lambda connection: connection.execute(update(files).where(files.c.id == file_id).values(**fields))
        )

    def delete_file(self, file_id: str) -> None:
        """Forget a file; one that is not recorded is fine."""
        self._write(lambda connection: connection.execute(delete_from(files).where(files.c.id == file_id)))

    def add_batch(self, record: BatchRecord) -> BatchRecord:
        """Record a batch and return it, or the one that the same flow run has made before."""
        values = _columns({name: getattr(record, name) for name in record.__struct_fields__})
        try:
            self._write(lambda connection: connection.execute(insert(batches).values(**values)))
        except Conflict:
            known = self.batch_of_flow_run(record.flow_run_id) if record.flow_run_id else None
            if known is None:
                raise
            return known
        return record

    def get_batch(self, batch_id: str) -> BatchRecord:
        """The batch; raises `NotFound`."""
        row = self._read(lambda connection: _row(connection, batches, batch_id))
        if row is None:
            raise NotFound(f"there is no batch {batch_id}; `batchline show` takes an id as `run` printed it")
        return _record(row)

    def batch_of_flow_run(self, flow_run_id: str) -> BatchRecord | None:
        """The batch that the flow run made, if it made one."""
        statement = select(batches).where(batches.c.flow_run_id == flow_run_id)
        row = self._read(lambda connection: connection.execute(statement).first())
        return None if row is None else _record(row)

    def list_batches(self, query: ListBatchesQuery, *, now: int) -> BatchListResponse:
        """A page of batches; raises `NotFound` for a cursor that is no batch."""
        after = None if query.after is None else self.get_batch(query.after)
        statement = list_statement(query, after=after, now=now).limit(query.limit + 1)
        rows = self._read(lambda connection: connection.execute(statement).all())
        analytics = "analytics" in (query.include or "").split(",")
        page = [_record(row).to_response(include_analytics=analytics) for row in rows[: query.limit]]
        return BatchListResponse(
            data=page,
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=len(rows) > query.limit,
        )

    def move(
        self, batch_id: str, target: BatchStatus, *, now: int, lease: Lease | None = None, **fields: object
    ) -> BatchRecord:
        """Bring the batch to that state, set the state's timestamp and those fields, and return it.

        Raises `Conflict` where the state that it is in does not allow it, `LeaseLost` where the lease is no
        longer the batch's.
        """
        stamp = timestamp_field(target)
        values = _columns({**fields, **({stamp: now} if stamp else {}), "status": target})
        allowed = [str(state) for state in sources_of(target)]
        statement = update(batches).where(batches.c.status.in_(allowed))
        return self._change(statement, batch_id, lease, values, f"cannot become {target}")

    def update(self, batch_id: str, *, lease: Lease | None = None, **fields: object) -> BatchRecord:
        """Change fields of the batch, its state apart, and return it; raises as `move` does."""
        return self._change(update(batches), batch_id, lease, _columns(fields), "cannot be changed")

    def claim(self, batch_id: str, *, owner: str, now: float, lease_s: float) -> Lease:
        """Take the batch's lease; raises `Conflict` while another's heartbeat is younger than `lease_s`."""
        free = or_(
            batches.c.lease_owner.is_(None), batches.c.lease_owner == owner, batches.c.lease_at < now - lease_s
        )
        values = {"epoch": batches.c.epoch + 1, "lease_owner": owner, "lease_at": now}
        batch = self._change(update(batches).where(free), batch_id, None, values, "is being run by another")
        return Lease(batch_id, owner, batch.epoch)

    def beat(
        self, lease: Lease, *, now: float, completed: int | None = None, failed: int | None = None
    ) -> BatchStatus:
        """Keep the lease, note the counts, and return the batch's state; raises `LeaseLost`."""
        counts = {"completed": completed, "failed": failed}
        values = {"lease_at": now, **{name: count for name, count in counts.items() if count is not None}}
        return self._change(update(batches), lease.batch_id, lease, values, "cannot be kept").status

    def release(self, lease: Lease) -> None:
        """Give the lease back, so that another may take it at once; a lost one is let be."""
        statement = _leased(update(batches), lease).values(lease_owner=None, lease_at=None)
        self._write(lambda connection: connection.execute(statement))

    def _change(
        self, statement: Update, batch_id: str, lease: Lease | None, values: Mapping[str, object], problem: str
    ) -> BatchRecord:
        guarded = statement.where(batches.c.id == batch_id)
        if lease is not None:
            guarded = _leased(guarded, lease)
        guarded = guarded.values(**values).returning(*batches.c)

        def work(connection: Connection) -> tuple[Row[Any] | None, Row[Any] | None]:
            changed = connection.execute(guarded).first()
            return changed, changed if changed is not None else _row(connection, batches, batch_id)

        changed, present = self._write(work)
        if changed is None:
            raise _refusal(batch_id, present, lease, problem)
        return _record(changed)

    def _read(self, work: Callable[[Connection], _T]) -> _T:
        def run() -> _T:
            with self._engine.connect().execution_options(reads=True) as connection:
                return work(connection)

        return retried(run)

    def _write(self, work: Callable[[Connection], _T]) -> _T:
        def run() -> _T:
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except IntegrityError as error:
                raise Conflict("there is one already") from error

        return retried(run)


def open_records(settings: Settings) -> Records:
    """The records in the settings' database; raises as `open_database` does."""
    return Records(open_database(settings))


def _leased(statement: Update, lease: Lease) -> Update:
    return statement.where(
        batches.c.id == lease.batch_id, batches.c.epoch == lease.epoch, batches.c.lease_owner == lease.owner
    )


def _row(connection: Connection, table: Table, known_as: str) -> Row[Any] | None:
    if "\0" in known_as:  # which PostgreSQL refuses to look for
        return None
    return connection.execute(select(table).where(table.c.id == known_as)).first()


def _refusal(batch_id: str, row: Row[Any] | None, lease: Lease | None, problem: str) -> Exception:
    if row is None:
        return NotFound(f"there is no batch {batch_id}")
    batch = _record(row)
    if lease is not None and (batch.epoch, batch.lease_owner) != (lease.epoch, lease.owner):
        return LeaseLost(f"batch {batch_id} has been taken over by another runner ({batch.lease_owner or 'none'})")
    if problem.startswith("is being run"):
        return Conflict(
            f"batch {batch_id} {problem} process ({batch.lease_owner}); if that one is dead, try again when its "
            "lease has gone stale"
        )
    return Conflict(f"batch {batch_id} is {batch.status} and {problem}")


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as the table holds them."""
    return {name: _text(name, value) if name in _JSON else value for name, value in fields.items()}


def _text(name: str, value: object) -> str | None:
    return None if value is None else _JSON[name].dump_json(value).decode()


def _record(row: Row[Any]) -> BatchRecord:
    fields = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's public name for it
    for name, adapter in _JSON.items():
        if fields[name] is not None:
            fields[name] = adapter.validate_json(fields[name])
    fields["status"] = BatchStatus(fields["status"])
    return BatchRecord(**fields)
