"""`batchline sync`: one pass over a watched folder."""

from typing import Literal

from rich.text import Text

from batchline.cli.console import print_json, stderr_console, stdout_console
from batchline.cli.exit_codes import ExitCode
from batchline.cli.options import (
    AfterOption,
    BatchOptionFlags,
    EndpointOption,
    Flag,
    JsonFlag,
    MetadataOption,
    WindowOption,
    WriteBackFlag,
)
from batchline.cli.progress import Progress
from batchline.cli.signals import interrupt_on_signal
from batchline.client import Batchline
from batchline.models.sync import SyncEvent, SyncOptions

STYLES = {"failed": "red", "unreadable": "red", "quarantined": "yellow", "waiting": "dim", "changed": "dim"}


def sync(
    uri: str,
    /,
    *,
    endpoint: EndpointOption = None,
    window: WindowOption = "24h",
    metadata: MetadataOption = None,
    options: BatchOptionFlags = None,
    write_back: WriteBackFlag = False,
    after: AfterOption = "keep",
    via: Literal["process", "deployment"] = "process",
    deployment: str | None = None,
    dry_run: Flag = False,
    json: JsonFlag = False,
) -> int:
    """Create a batch for each new or changed file in a folder, exactly once, and run it.

    Parameters
    ----------
    uri:
        The folder, below an allowed root: s3://bucket/inbox/, a path, or either with a pattern such as *.jsonl.
    via:
        Run batches in this process, one after another, or start them as runs of a deployment.
    deployment:
        With --via deployment, its flow and name; by default that of the settings.
    dry_run:
        Only print what would be done.
    """
    sync_options = SyncOptions(
        endpoint=endpoint,
        completion_window=window,
        metadata=metadata,
        options=options,
        write_back=write_back,
        after=after,
    )
    client = Batchline(origin="cli")
    with Progress() as progress:
        progress.doing(f"reading {uri}")

        def start_batch(batch_id: str) -> None:
            if via == "deployment":
                client.batches.resume(batch_id, via=via, deployment=deployment)
                return
            progress.follow(lambda: client.batches.meter(batch_id))
            with interrupt_on_signal(client, batch_id):
                client.batches.run(batch_id)

        summary = client.sync(uri, sync_options, start_batch=start_batch, on_event=_print_event, dry_run=dry_run)
    if json:
        print_json(summary.model_dump_json())
    else:
        stdout_console().print(f"{summary.source}: {summary.message}", markup=False)
    return ExitCode.STOPPED if summary.failed else ExitCode.OK


def _print_event(event: SyncEvent) -> None:
    if event.kind != "unchanged":
        stderr_console().print(Text(str(event), style=STYLES.get(event.kind, "")))
