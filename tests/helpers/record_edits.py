"""Changes of records that the product never makes alone: what time or another program has done to them."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import update

from batchline.storage.records.record_types import to_columns
from batchline.storage.records.schema import batches, files, synced_files
from batchline.storage.records.store import BatchRecord, Records


def change_batch(records: Records, batch_id: str, **fields: Any) -> BatchRecord:
    """Change fields of the batch, and what lists have of it."""
    return records._update_batch(update(batches), batch_id, None, to_columns(fields), "cannot be changed")


def change_file(records: Records, file_id: str, **fields: Any) -> None:
    """Change fields of the file."""
    records._write(update(files).where(files.c.id == file_id).values(**fields))


def change_synced_files(records: Records, batch_ids: Iterable[str], **fields: Any) -> None:
    """Change fields of the synced files that became these batches."""
    records._write(update(synced_files).where(synced_files.c.batch_id.in_(batch_ids)).values(**fields))
