"""Stores and reads the report of a batch as data."""

import logging

from pydantic import ValidationError

from batchline.models.analytics import BatchReport
from batchline.models.errors import NotFound, StorageFault
from batchline.storage.objects import layout
from batchline.storage.objects.store import ObjectStore

log = logging.getLogger(__name__)


def store_report(store: ObjectStore, batch_id: str, report: BatchReport) -> None:
    """Store the batch's report, replacing an earlier one."""
    store.put(layout.report_data_key(batch_id), report.model_dump_json().encode())


def read_report(store: ObjectStore, batch_id: str) -> BatchReport:
    """Return the batch's report; raises `NotFound` if it is not written yet."""
    return BatchReport.model_validate_json(store.read(layout.report_data_key(batch_id)))


def report_of(store: ObjectStore, batch_id: str) -> BatchReport | None:
    """Return the batch's report, or None if it has none or it cannot be read now."""
    try:
        return read_report(store, batch_id)
    except NotFound:
        return None
    except (StorageFault, ValidationError) as error:
        log.warning("the report of %s cannot be read: %s", batch_id, error)
        return None
