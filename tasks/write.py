"""The last step: join the parts into the output and error files."""

from collections.abc import Sequence

from batchline.models.analytics import BatchReport
from batchline.steps import lifecycle
from batchline.steps.hold import BatchHold
from batchline.steps.parts import Part
from batchline.steps.write import Manifest
from batchline.tasks.faults import step


@step(name="write", task_run_name="write")
def write(hold: BatchHold, parts: Sequence[Part], report: BatchReport) -> Manifest:
    """The batch's files, each there whole or not at all."""
    return lifecycle.write(hold, parts, report)
