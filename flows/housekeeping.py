"""The housekeeping flow, for a schedule: deletes what is due and resumes orphaned batches."""

from collections import Counter

from prefect import flow, get_run_logger

from batchline.client import Batchline, run_housekeeping
from batchline.client.housekeeping import MaintenanceItem
from batchline.models.errors import StorageFault
from batchline.orchestration import parameters
from batchline.orchestration.blocks import settings_from_blocks
from batchline.orchestration.events import report_stopped
from batchline.orchestration.log_filter import install_log_filter


@flow(name="housekeeping", persist_result=False, on_completion=[report_stopped], on_failure=[report_stopped])
def housekeeping(apply: bool = True, resume: bool = True, storage: parameters.Text = "") -> dict[str, int]:
    """Delete expired files and leftovers of dead processes, and resume batches whose runner died.

    Args:
        apply: Do the work; if unset, the run only logs what there is to do.
        resume: Resume batches whose runner died, each in a flow run of its own.
        storage: Name of a batchline-storage block; by default the storage in the environment's settings.

    Returns the number of items of each kind. Raises `StorageFault` if some could not be done.
    """
    install_log_filter()
    logger, counts, failed_items = get_run_logger(), Counter[str](), []
    with Batchline(settings_from_blocks(upstreams=[], storage=storage), origin="deployment") as client:
        for item in run_housekeeping(client, apply=apply, resume=resume, via="deployment"):
            counts[item.kind] += 1
            logger.log(40 if item.error else 20, "%s", _describe_item(item))
            failed_items += [item] if item.error else []
    if not counts:
        logger.info("nothing to do")
    if failed_items:
        raise StorageFault(
            f"{len(failed_items)} items could not be done, the first: {_describe_item(failed_items[0])}"
        )
    return dict(counts)


def _describe_item(item: MaintenanceItem) -> str:
    return f"{item.name} {item.subject}: {item.reason}; {item.error or item.state}"
