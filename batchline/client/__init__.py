"""What can be done with files and batches; the command line and every other face only call it."""

from batchline.client.async_client import AsyncBatchline
from batchline.client.client import Batchline
from batchline.client.housekeeping import MaintenanceItem, run_housekeeping

__all__ = ["AsyncBatchline", "Batchline", "MaintenanceItem", "run_housekeeping"]
