"""Stores and reads the report of a batch as data."""

import logging

from pydantic import ValidationError

from batchline.models.analytics import BatchReport
from batchline.models.errors import NotFound, StorageFault
from batchline.models.status import TERMINAL_STATUSES
from batchline.storage.objects import layout
from batchline.storage.objects.store import ObjectStore
from batchline.storage.records.store import BatchRecord

log = logging.getLogger(__name__)


def store_report(store: ObjectStore, batch_id: str, report: BatchReport) -> None:
    """Store the batch's report, replacing an earlier one."""
    store.put(layout.report_data_key(batch_id), report.model_dump_json().encode())


def read_report(store: ObjectStore, batch_id: str) -> BatchReport:
    """Return the batch's report; raises `NotFound` if it is not written yet."""
    return BatchReport.model_validate_json(store.read(layout.report_data_key(batch_id)))


def published_uris(store: ObjectStore, batch: BatchRecord) -> dict[str, str]:
    """Return the addresses of an ended batch's files by what they are: output, errors, figures, report."""
    if batch.final_prefix is None or batch.status not in TERMINAL_STATUSES:
        return {}
    keys = {
        "output": (layout.output_key(batch.id), batch.output_file_id),
        "errors": (layout.errors_key(batch.id), batch.error_file_id),
        "figures": (key := layout.requests_key(batch.id), store.exists(key)),
        "report": (key := layout.report_page_key(batch.id), store.exists(key)),
    }
    return {name: store.uri(key) for name, (key, exists) in keys.items() if exists}


def report_of(store: ObjectStore, batch_id: str) -> BatchReport | None:
    """Return the batch's report, or None if it has none or it cannot be read now."""
    try:
        return read_report(store, batch_id)
    except NotFound:
        return None
    except (StorageFault, ValidationError) as error:
        log.warning("the report of %s cannot be read: %s", batch_id, error)
        return None
