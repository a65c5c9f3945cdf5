"""`batchline sync`: one round over a watched folder."""

from collections.abc import Callable
from typing import Literal

from rich.text import Text

from batchline.cli.console import messages, print_json, results
from batchline.cli.exits import Exit
from batchline.cli.interrupt import clean_interrupt
from batchline.cli.options import Flag
from batchline.cli.progress import Progress
from batchline.models.sync import After, SyncEvent, SyncOptions
from batchline.sources import sync_source
from batchline.steps.engine import Engine, open_engine
from batchline.steps.local import run_local

STYLES = {"failed": "red", "unreadable": "red", "quarantined": "yellow", "waiting": "dim", "changed": "dim"}


def sync(
    uri: str,
    /,
    *,
    endpoint: str | None = None,
    window: str = "24h",
    metadata: dict[str, str] | None = None,
    write_back: Flag = False,
    after: After = "keep",
    via: Literal["process", "deployment"] = "process",
    deployment: str | None = None,
    dry_run: Flag = False,
    json: Flag = False,
) -> int:
    """Make a batch of each new or changed file in a folder, exactly once, and run it.

    Parameters
    ----------
    uri:
        The folder, below an allowed root: s3://bucket/inbox/, a path, or either with a pattern such as *.jsonl.
    endpoint:
        The endpoint of every request, such as /v1/embeddings; by default each file's first request's own.
    window:
        How long a batch may take, such as 90m, 24h or 7d.
    metadata:
        Up to 16 pairs for every batch, each as --metadata.KEY VALUE.
    write_back:
        Write results to the folder outbox beside the watched one, when a batch is over.
    after:
        What becomes of a file that was taken: keep, move (to the folder taken) or delete (an hour later).
    via:
        Run batches in this process, one after another, or start them as runs of a deployment.
    deployment:
        The deployment, where batches are started as runs of one: flow and name; by default the settings'.
    dry_run:
        Only look, and tell what would be done.
    json:
        Print what came of the round, with each event, as JSON.
    """
    options = SyncOptions(
        endpoint=endpoint, completion_window=window, metadata=metadata, write_back=write_back, after=after
    )
    engine = open_engine()
    with Progress(messages()) as progress:
        progress.doing(f"looking at {uri}")
        start = _run(engine, progress) if via == "process" else _deploy(engine, deployment)
        summary = sync_source(engine, uri, options, start=start, tell=_tell, dry_run=dry_run)
    if json:
        print_json(summary.model_dump_json())
    else:
        results().print(f"{summary.source}: {summary.message}", markup=False)
    return Exit.STOPPED if summary.failed else Exit.OK


def _run(engine: Engine, progress: Progress) -> Callable[[str], object]:
    def run(batch_id: str) -> None:
        progress.follow(batch_id)
        with clean_interrupt(batch_id):
            run_local(engine, batch_id)

    return run


def _deploy(engine: Engine, deployment: str | None) -> Callable[[str], object]:
    from batchline.orchestration.deployments import (  # noqa: PLC0415 - Prefect takes seconds to import
        start_as_deployment,
    )

    return lambda batch_id: start_as_deployment(engine, batch_id, deployment=deployment)


def _tell(event: SyncEvent) -> None:
    if event.kind != "unchanged":
        messages().print(Text(str(event), style=STYLES.get(event.kind, "")))
