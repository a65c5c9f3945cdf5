"""What can be done with files and batches; the command line and every other face only call it."""

from batchline.operations.aio import AsyncBatchline
from batchline.operations.client import Batchline

__all__ = ["AsyncBatchline", "Batchline"]
