"""Statements that several operations on the records share."""

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, Update, false, func, insert, or_, select, update
from sqlalchemy import delete as delete_from

from batchline.models.errors import LimitReached, NotFound
from batchline.models.status import ACTIVE_STATUSES
from batchline.storage.records.batch_index import index_row
from batchline.storage.records.record_types import (
    BatchRecord,
    FileChanges,
    Lease,
    OpenBatchLimit,
    PendingDeletion,
    to_columns,
)
from batchline.storage.records.schema import batch_index, batches, files, members, pending_deletions

_RESULT_FILE_COLUMNS = (batches.c.output_file_id, batches.c.error_file_id)


def apply_file_changes(connection: Connection, changes: FileChanges) -> None:
    """Apply the changes to the file records."""
    for record in changes.added:
        connection.execute(insert(files).values(**msgspec.structs.asdict(record)))
    for file_id, fields in changes.changed.items():
        connection.execute(update(files).where(files.c.id == file_id).values(**fields))
    for file_id in changes.deleted:
        connection.execute(delete_from(files).where(files.c.id == file_id))
    for deletion in changes.scheduled_deletions:
        schedule_deletion(connection, deletion)
    connection.execute(
        delete_from(pending_deletions).where(pending_deletions.c.prefix.in_(changes.unscheduled_deletions))
    )


def schedule_deletion(connection: Connection, deletion: PendingDeletion) -> None:
    """Schedule objects for deletion, in place of an earlier schedule for the same prefix."""
    connection.execute(delete_from(pending_deletions).where(pending_deletions.c.prefix == deletion.prefix))
    connection.execute(insert(pending_deletions).values(**msgspec.structs.asdict(deletion)))


def insert_batch(connection: Connection, record: BatchRecord) -> None:
    """Insert the batch and its row in the list index."""
    values = to_columns({name: getattr(record, name) for name in record.__struct_fields__})
    connection.execute(insert(batches).values(**values))
    connection.execute(insert(batch_index).values(**index_row(record)))


def lock_file(connection: Connection, file_id: str) -> None:
    """Lock the file's row until the transaction ends, against deletion and new batches; raises `NotFound`."""
    is_storable = "\0" not in file_id  # PostgreSQL raises an error for NUL
    statement = select(files.c.id).where(files.c.id == file_id).with_for_update()
    if not is_storable or connection.execute(statement).first() is None:
        raise NotFound(f"there is no file {file_id}")


def check_open_batch_limit(connection: Connection, limit: OpenBatchLimit) -> None:
    """Raise `LimitReached` if the member has the maximum of open batches."""
    # The lock makes concurrent calls wait, else each could count before the others insert.
    connection.execute(select(members.c.id).where(members.c.id == limit.member_id).with_for_update())
    is_open_and_theirs = (batch_index.c.member_id == limit.member_id, batch_index.c.is_over == false())
    count = connection.execute(
        select(func.count()).select_from(batch_index).where(*is_open_and_theirs)
    ).scalar_one()
    if count >= limit.max_open:
        raise LimitReached(
            f"{count} of your batches are not finished, and at most {limit.max_open} are allowed; wait for one "
            "to finish, or cancel one"
        )


def batches_using(file_id: ColumnElement[str] | str) -> Select[Any]:
    """Return the query for unfinished batches that use the file."""
    uses_file = or_(*(column == file_id for column in (batches.c.input_file_id, *_RESULT_FILE_COLUMNS)))
    return select(batches.c.id).where(uses_file, batches.c.status.in_(ACTIVE_STATUSES))


def is_unleased(*, now: ColumnElement[float] | float, lease_s: float) -> ColumnElement[bool]:
    """Return the condition that the batch has no lease, or an expired one."""
    return or_(batches.c.lease_owner.is_(None), batches.c.lease_at < now - lease_s)


def restrict_to_lease(statement: Update, lease: Lease) -> Update:
    """Return the statement restricted to the batch while the lease is valid."""
    return statement.where(
        batches.c.id == lease.batch_id, batches.c.epoch == lease.epoch, batches.c.lease_owner == lease.owner
    )
