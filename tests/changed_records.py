"""Changes of records that the product never makes alone: what time or another program has done to them."""

from typing import Any

from sqlalchemy import update

from batchline.storage.records import BatchRecord, Records
from batchline.storage.rows import columns_of
from batchline.storage.schema import batches, files


def change_batch(records: Records, batch_id: str, **fields: Any) -> BatchRecord:
    """Change fields of the batch, and what lists have of it."""
    return records._change(update(batches), batch_id, None, columns_of(fields), "cannot be changed")


def change_file(records: Records, file_id: str, **fields: Any) -> None:
    """Change fields of the file."""
    records._write(
        lambda connection: connection.execute(update(files).where(files.c.id == file_id).values(**fields))
    )
