"""Picks up new files from a watched folder: one batch for each, run here or as deployment runs."""

from functools import partial
from typing import Literal, cast

from prefect import flow, get_run_logger
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Completed

from batchline.flows.process_batch import process_batch, using_engine
from batchline.models.errors import BatchEnded, BatchlineError, Interrupted, InvalidInput
from batchline.models.sync import After, SyncEvent, SyncOptions, SyncSummary
from batchline.sources import sync_source as sync
from batchline.steps.engine import Engine, open_engine

DEPLOYMENT = "process-batch/process-batch"


@flow(name="sync-source", flow_run_name="sync {uri}", persist_result=False)
def sync_source(
    uri: str,
    endpoint: str | None = None,
    completion_window: str = "24h",
    metadata: str = "",
    write_back: bool = False,
    after: After = "keep",
    via: Literal["deployment", "process"] = "deployment",
    deployment: str = DEPLOYMENT,
    dry_run: bool = False,
) -> SyncSummary:
    """Make a batch of each new or changed file, exactly once, and start it; return what came of the round.

    Results of batches that are over are written back, and files that do not validate put into quarantine. What
    fails with one file is told in the summary; the run fails where the folder, or our own storage, cannot be used.

    Args:
        uri: The folder to watch, below an allowed root: `s3://bucket/inbox/`, a path, or either with a pattern for
            its last part, such as `*.jsonl`.
        endpoint: The endpoint of every request; where empty, the one of each file's first request.
        completion_window: How long a batch may take: a number and m, h or d.
        metadata: Up to 16 pairs for every batch, one `key=value` a line.
        write_back: Write results to the folder `outbox` beside the watched one when a batch is over.
        after: What becomes of a file that was taken: it stays, is moved to the folder `taken`, or is deleted.
        via: Start batches as runs of a deployment, or run them in this flow (process), one after another.
        deployment: The deployment of process-batch whose runs they are.
        dry_run: Only look, and tell what would be done.
    """
    log, engine = get_run_logger(), open_engine()
    options = SyncOptions(
        endpoint=endpoint or None,
        completion_window=completion_window,
        metadata=pairs(metadata) or None,
        write_back=write_back,
        after=after,
    )
    start = partial(run_here, engine) if via == "process" else partial(start_run, deployment=deployment)

    def tell(event: SyncEvent) -> None:
        if event.kind in {"failed", "unreadable"}:
            log.warning("%s", event)
        elif event.kind != "unchanged":
            log.info("%s", event)

    summary = sync(engine, uri, options, start=start, tell=tell, dry_run=dry_run)
    log.info("%s: %s", summary.source, summary.message)
    return cast("SyncSummary", Completed(message=summary.message, data=summary))


def run_here(engine: Engine, batch_id: str) -> None:
    """Run the batch to its end, however it ends; raises what stops it before."""
    with using_engine(engine):
        state = process_batch(batch_id=batch_id, return_state=True)
    result = state.result(raise_on_failure=False)
    if isinstance(result, BatchlineError) and not isinstance(result, BatchEnded):
        raise result
    if isinstance(result, BaseException) and not isinstance(result, BatchEnded):
        raise Interrupted(f"the flow run ended {state.name}: {result}") from result


def start_run(batch_id: str, *, deployment: str = DEPLOYMENT) -> None:
    """Have the batch run by that deployment; started twice, it runs once."""
    try:
        run_deployment(
            name=deployment,
            parameters={"batch_id": batch_id},
            timeout=0,
            idempotency_key=batch_id,
            as_subflow=False,
        )
    except ObjectNotFound as error:
        raise InvalidInput(
            f"there is no deployment {deployment!r}: deploy it (`prefect deploy --all`), or run batches in the "
            "flow itself (via process)",
            param="deployment",
        ) from error
    except Exception as error:  # Prefect's client raises many kinds where its server fails
        raise Interrupted(f"Prefect did not start it: {type(error).__name__}: {error}") from error


def pairs(lines: str) -> dict[str, str]:
    """The pairs that are written as a key=value a line; raises `InvalidInput` for another line."""
    found: dict[str, str] = {}
    for line in filter(str.strip, lines.splitlines()):
        key, sign, value = line.partition("=")
        if not sign or not key.strip() or key.strip() in found:
            raise InvalidInput(
                f"metadata has the line {line[:80]!r}; write key=value, each key once", param="metadata"
            )
        found[key.strip()] = value.strip()
    return found
