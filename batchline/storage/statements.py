"""Statements on the records that several of their operations share."""

from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, Update, false, func, insert, or_, select, update
from sqlalchemy import delete as delete_from

from batchline.models.errors import LimitReached, NotFound
from batchline.models.status import ACTIVE
from batchline.storage.listing import listed_row
from batchline.storage.rows import BatchRecord, Doomed, FileChanges, Lease, Room, columns_of
from batchline.storage.schema import batches, doomed, files, listed_batches, members

_OWN_FILES = (batches.c.output_file_id, batches.c.error_file_id)


def apply_changes(connection: Connection, changes: FileChanges) -> None:
    """Do those changes of file records."""
    for record in changes.added:
        connection.execute(insert(files).values(**msgspec.structs.asdict(record)))
    for file_id, fields in changes.changed.items():
        connection.execute(update(files).where(files.c.id == file_id).values(**fields))
    for file_id in changes.dropped:
        connection.execute(delete_from(files).where(files.c.id == file_id))
    for some in changes.doomed:
        doom(connection, some)
    connection.execute(delete_from(doomed).where(doomed.c.prefix.in_(changes.absolved)))


def doom(connection: Connection, some: Doomed) -> None:
    """Note those objects as doomed, in the place of an earlier note."""
    connection.execute(delete_from(doomed).where(doomed.c.prefix == some.prefix))
    connection.execute(insert(doomed).values(**msgspec.structs.asdict(some)))


def insert_batch(connection: Connection, record: BatchRecord) -> None:
    """Add the batch, with what lists look at."""
    values = columns_of({name: getattr(record, name) for name in record.__struct_fields__})
    connection.execute(insert(batches).values(**values))
    connection.execute(insert(listed_batches).values(**listed_row(record)))


def locked_file(connection: Connection, file_id: str) -> None:
    """Keep others from deleting the file, or from making a batch of it, until this is done; raises `NotFound`."""
    known = "\0" not in file_id  # which PostgreSQL refuses to look for
    statement = select(files.c.id).where(files.c.id == file_id).with_for_update()
    if not known or connection.execute(statement).first() is None:
        raise NotFound(f"there is no file {file_id}")


def check_room(connection: Connection, room: Room) -> None:
    """Raise `LimitReached` where no more of the member's batches may be open; others wait until this is done."""
    connection.execute(select(members.c.id).where(members.c.id == room.member_id).with_for_update())
    theirs = (listed_batches.c.member_id == room.member_id, listed_batches.c.is_over == false())
    count = connection.execute(select(func.count()).select_from(listed_batches).where(*theirs)).scalar_one()
    if count >= room.most_open:
        raise LimitReached(
            f"{count} of your batches are not over, and at most {room.most_open} may be; wait for one, or cancel "
            "it"
        )


def needing(file_id: ColumnElement[str] | str) -> Select[Any]:
    """The batches that are not over and have that file."""
    used = or_(*(column == file_id for column in (batches.c.input_file_id, *_OWN_FILES)))
    return select(batches.c.id).where(used, batches.c.status.in_([str(state) for state in ACTIVE]))


def is_free(*, now: ColumnElement[float] | float, lease_s: float) -> ColumnElement[bool]:
    """Nobody has the batch's lease, or nobody who is alive."""
    return or_(batches.c.lease_owner.is_(None), batches.c.lease_at < now - lease_s)


def leased(statement: Update, lease: Lease) -> Update:
    """The statement for the batch while the lease is still its own."""
    return statement.where(
        batches.c.id == lease.batch_id, batches.c.epoch == lease.epoch, batches.c.lease_owner == lease.owner
    )
