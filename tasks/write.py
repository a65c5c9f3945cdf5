"""The last step of a batch: joins the parts into the output and error files."""

from collections.abc import Sequence

from batchline.engine.lease import BatchLease
from batchline.models.analytics import BatchReport
from batchline.models.manifest import Manifest
from batchline.steps.parts import Part
from batchline.steps.write import write as write_step
from batchline.tasks.retries import step


@step(name="write", task_run_name="write")
def write(hold: BatchLease, parts: Sequence[Part], report: BatchReport) -> Manifest:
    """Write the batch's files, each atomically, and return their manifest."""
    return write_step(hold, parts, report)
