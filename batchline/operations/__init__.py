"""What can be done with files and batches; the command line and every other face only call it."""

from batchline.operations.aio import AsyncBatchline
from batchline.operations.client import Batchline
from batchline.operations.housekeeping import Chore, housekeeping

__all__ = ["AsyncBatchline", "Batchline", "Chore", "housekeeping"]
