"""Operations on files and batches; the API, the web pages and the command line are built on them."""

from batchline.client.async_client import AsyncBatchline
from batchline.client.client import Batchline
from batchline.client.housekeeping import MaintenanceItem, run_housekeeping

__all__ = ["AsyncBatchline", "Batchline", "MaintenanceItem", "run_housekeeping"]
