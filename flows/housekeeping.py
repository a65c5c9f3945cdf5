"""The housekeeping flow, for a schedule: deletes what is due and resumes orphaned batches."""

from collections import Counter

from prefect import flow, get_run_logger

from batchline.client import Batchline
from batchline.client import run_housekeeping as chores_of
from batchline.client.housekeeping import MaintenanceItem
from batchline.models.errors import StorageFault
from batchline.orchestration import parameters
from batchline.orchestration.blocks import settings_from_blocks
from batchline.orchestration.events import report_stopped
from batchline.orchestration.log_filter import install_log_filter


@flow(name="housekeeping", persist_result=False, on_completion=[report_stopped], on_failure=[report_stopped])
def housekeeping(apply: bool = True, resume: bool = True, storage: parameters.Text = "") -> dict[str, int]:
    """Delete expired files and what dead processes left, and have batches go on whose runner died.

    Args:
        apply: Do it; otherwise it is only told what there is to be done.
        resume: Go on with batches whose runner died, each as a run of its own.
        storage: Name of a batchline-storage block; else what the environment says.

    Returns how many chores of each kind there were. Raises `StorageFault` where some could not be done.
    """
    install_log_filter()
    logger, counts, failed_items = get_run_logger(), Counter[str](), []
    with Batchline(settings_from_blocks(upstreams=[], storage=storage), origin="deployment") as client:
        for item in chores_of(client, apply=apply, resume=resume, via="deployment"):
            counts[item.kind] += 1
            logger.log(40 if item.error else 20, "%s", _describe_item(item))
            failed_items += [item] if item.error else []
    if not counts:
        logger.info("nothing to do")
    if failed_items:
        raise StorageFault(
            f"{len(failed_items)} chores could not be done, the first: {_describe_item(failed_items[0])}"
        )
    return dict(counts)


def _describe_item(item: MaintenanceItem) -> str:
    return f"{item.name} {item.subject}: {item.reason}; {item.error or item.state}"
