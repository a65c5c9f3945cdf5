"""`batchline prefect serve`: run the deployments on one machine, without a checkout, work pool or worker."""

import asyncio
import contextlib
import signal
from typing import Any

from batchline.cli.console import print_note
from batchline.cli.options import (
    AfterOption,
    BatchOptionFlags,
    EndpointOption,
    WindowOption,
    WriteBackFlag,
    absolute_uri,
)
from batchline.cli.prefect_run import configured_server_url
from batchline.cli.prefect_setup import print_warning
from batchline.models.errors import InvalidInput
from batchline.models.sync import SyncOptions

NON_BATCH_RUNS = 2
"""Extra runs so that a sync round and housekeeping do not wait for batches."""


def serve(
    *,
    limit: int = 8,
    watch: str | None = None,
    endpoint: EndpointOption = None,
    window: WindowOption = "24h",
    options: BatchOptionFlags = None,
    write_back: WriteBackFlag = False,
    after: AfterOption = "keep",
) -> None:
    """Run batches here, as runs of deployments that this creates on the configured server, until Ctrl-C.

    The deployments are those of prefect.yaml. Run `batchline prefect setup` too, once per server.

    Parameters
    ----------
    limit:
        Maximum number of concurrent batches.
    watch:
        A folder below an allowed root; each new file in it becomes a batch. It is read every minute.
    """
    if limit < 1:
        raise InvalidInput(f"--limit is {limit}; write 1 or more", param="limit")
    sync_options = SyncOptions(
        endpoint=endpoint, completion_window=window, options=options, write_back=write_back, after=after
    )
    if watch is None and sync_options != SyncOptions():
        raise InvalidInput(
            "--endpoint, --window, --write-back, --after and options of batches require --watch FOLDER",
            param="watch",
        )
    url = configured_server_url(quiet=False)
    print_note(f"Prefect server: {url}")
    from batchline.flows.deployments import deployments  # noqa: PLC0415 - Prefect takes seconds to import
    from batchline.orchestration.prefect_errors import interrupted  # noqa: PLC0415 - as above
    from batchline.orchestration.setup import find_server_warning  # noqa: PLC0415 - as above

    print_warning(find_server_warning())
    from prefect.runner import Runner  # noqa: PLC0415 - as above

    class Serving(Runner):
        """A runner that ends on SIGTERM as on Ctrl-C; Prefect's never awaits its handler there."""

        def handle_sigterm(self, *args: Any, **kwargs: Any) -> None:
            del args, kwargs
            signal.raise_signal(signal.SIGINT)

    runner = Serving(name="batchline", limit=limit + NON_BATCH_RUNS, pause_on_shutdown=False)
    served_deployments = deployments(
        limit=limit, watched_uri=absolute_uri(watch) if watch else None, options=sync_options
    )
    with interrupted():
        for deployment in served_deployments:
            runner.add_deployment(deployment)
    names = ", ".join(deployment.full_name for deployment in served_deployments)
    print_note(f"serving {names}; Ctrl-C stops it")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(runner.start())
    print_note("stopped; the batches that were running continue when this runs again")
