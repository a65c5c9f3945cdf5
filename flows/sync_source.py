"""The flow that syncs a watched folder: one batch for each new file, run here or by a deployment."""

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Literal, cast

from prefect import flow, get_run_logger
from prefect.states import Completed

from batchline.client import Batchline
from batchline.flows.process_batch import run_batch
from batchline.models.errors import BatchEnded
from batchline.models.sync import AfterAction, SyncEvent, SyncOptions, SyncSummary
from batchline.orchestration import parameters
from batchline.orchestration.blocks import settings_from_blocks
from batchline.orchestration.deployments import start_deployment_run
from batchline.orchestration.events import report_stopped
from batchline.orchestration.log_filter import install_log_filter
from batchline.orchestration.sync_reports import PROBLEM_KINDS, emit_quarantined, publish_problems


@flow(
    name="sync-source",
    flow_run_name="sync {uri}",
    persist_result=False,
    on_completion=[report_stopped],
    on_failure=[report_stopped],
)
def sync_source(
    uri: str,
    endpoint: parameters.Text = "",
    completion_window: parameters.Window = "24h",
    metadata: parameters.Metadata = parameters.NO_METADATA,
    options: parameters.Options = parameters.NO_OPTIONS,
    write_back: bool = False,
    after: AfterAction = "keep",
    via: Literal["deployment", "process"] = "deployment",
    deployment: parameters.Text = "",
    storage: parameters.Text = "",
    dry_run: bool = False,
) -> SyncSummary:
    """Create and start a batch for each new or changed file, exactly once, and return a summary.

    Results of batches that are over are written back, and files that do not validate are moved to quarantine.
    The summary lists problems with single files; the run fails if the folder or our storage cannot be used.

    Args:
        uri: The folder to watch, below an allowed root: `s3://bucket/inbox/`, a path, or either with a pattern for
            its last part, such as `*.jsonl`.
        endpoint: The endpoint of every request; if empty, that of each file's first request.
        completion_window: The time that a batch may take.
        metadata: Up to 16 pairs for every batch, as JSON, such as {"team": "search"}.
        options: Rules for answers that are flawed, and for batches that keep failing.
        write_back: Write results to the folder `outbox` next to the watched one when a batch is over.
        after: What to do with a file that has a batch: keep it, move it to `taken`, or delete it an hour later.
        via: Start batches as runs of a deployment, or run them in this flow (process), one after another.
        deployment: The deployment of process-batch to start, as flow/name; by default the one in the settings.
        storage: Name of a batchline-storage block; by default the storage in the environment's settings.
        dry_run: Only report what would be done.
    """
    install_log_filter()
    logger, client = get_run_logger(), Batchline(settings_from_blocks(upstreams=[], storage=storage))
    sync_options = SyncOptions(
        endpoint=endpoint or None,
        completion_window=completion_window,
        metadata=metadata or None,
        options=options,
        write_back=write_back,
        after=after,
    )
    start_batch: Callable[[str], object] = partial(start_deployment_run, client.services, deployment=deployment)
    if via == "process":
        start_batch = partial(_run_in_process, client)

    def log_event(event: SyncEvent) -> None:
        if event.kind in PROBLEM_KINDS:
            logger.warning("%s", event)
        if event.kind == "quarantined":
            emit_quarantined(event)
        if event.kind not in {*PROBLEM_KINDS, "unchanged"}:
            logger.info("%s", event)

    summary = client.sync(uri, sync_options, start_batch=start_batch, on_event=log_event, dry_run=dry_run)
    logger.info("%s: %s", summary.source, summary.message)
    publish_problems(summary)
    return cast("SyncSummary", Completed(message=summary.message, data=summary))


def _run_in_process(client: Batchline, batch_id: str) -> None:
    """Run the batch to any end; raises the error that stops it before."""
    with suppress(BatchEnded):
        run_batch(client, batch_id)
