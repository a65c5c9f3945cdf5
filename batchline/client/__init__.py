"""Operations on files and batches; the API, the web pages and the command line are built on them."""

from batchline.client.async_client import AsyncBatchline
from batchline.client.client import Batchline, ServerMetrics
from batchline.client.files import validate_file
from batchline.client.housekeeping import MaintenanceItem, run_housekeeping
from batchline.engine.progress_meter import ProgressMeter, ProgressSnapshot
from batchline.steps.validate_lines import Validation
from batchline.storage.records.record_types import KeyRecord
from batchline.storage.records.store import BatchRecord, upgrade_database

__all__ = [
    "AsyncBatchline",
    "BatchRecord",
    "Batchline",
    "KeyRecord",
    "MaintenanceItem",
    "ProgressMeter",
    "ProgressSnapshot",
    "ServerMetrics",
    "Validation",
    "run_housekeeping",
    "upgrade_database",
    "validate_file",
]
