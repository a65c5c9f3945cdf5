"""Housekeeping as a flow, for a schedule: what is due is deleted, what was left lying goes on."""

from collections import Counter

from prefect import flow, get_run_logger

from batchline.models.errors import StorageFault
from batchline.operations import Batchline
from batchline.operations import housekeeping as chores_of
from batchline.operations.housekeeping import Chore
from batchline.orchestration import forms
from batchline.orchestration.blocks import settings_of
from batchline.orchestration.events import report_stopped
from batchline.orchestration.run_log import tell_errors_plainly


@flow(name="housekeeping", persist_result=False, on_completion=[report_stopped], on_failure=[report_stopped])
def housekeeping(apply: bool = True, resume: bool = True, storage: forms.Text = "") -> dict[str, int]:
    """Delete expired files and what dead processes left, and have batches go on whose runner died.

    Args:
        apply: Do it; otherwise it is only told what there is to be done.
        resume: Go on with batches whose runner died, each as a run of its own.
        storage: Name of a batchline-storage block; else what the environment says.

    Returns how many chores of each kind there were. Raises `StorageFault` where some could not be done.
    """
    tell_errors_plainly()
    logger, kinds, failed = get_run_logger(), Counter[str](), []
    with Batchline(settings_of(upstreams=[], storage=storage), source="deployment") as client:
        for chore in chores_of(client, apply=apply, resume=resume, via="deployment"):
            kinds[chore.kind] += 1
            logger.log(40 if chore.error else 20, "%s", _told(chore))
            failed += [chore] if chore.error else []
    if not kinds:
        logger.info("nothing to do")
    if failed:
        raise StorageFault(f"{len(failed)} chores could not be done, the first: {_told(failed[0])}")
    return dict(kinds)


def _told(chore: Chore) -> str:
    return f"{chore.name} {chore.subject}: {chore.reason}; {chore.error or chore.state}"
