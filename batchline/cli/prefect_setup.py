"""`batchline prefect setup` and `chain`: what a Prefect server needs besides `prefect deploy`."""

from typing import TYPE_CHECKING

import cyclopts

from batchline.cli.console import print_json, stderr_console
from batchline.cli.options import Flag, WindowOption, absolute_uri
from batchline.cli.prefect_run import configured_server_url
from batchline.cli.progress import Progress
from batchline.cli.tables import Column, print_rows
from batchline.models.settings import load_settings

if TYPE_CHECKING:
    from batchline.orchestration.automations import SetupResult

app = cyclopts.App(name="prefect", help="Set up a Prefect server for the deployments.", help_format="plaintext")
app.command("batchline.cli.prefect_serve:serve", help="Run the deployments on this machine, without a worker.")
COLUMNS = (Column("what"), Column("name"), Column("outcome"))


@app.command
def setup(
    *, work_pool: str = "batchline", crash_after: int = 90, notify: tuple[str, ...] = (), json: Flag = False
) -> None:
    """Create the work pool, the block types and the automations that the configured server lacks.

    Safe to repeat. Afterwards: `prefect deploy --all` in the checkout, and a worker by
    `prefect worker start --pool batchline`.

    Parameters
    ----------
    work_pool:
        Name of the work pool of processes.
    crash_after:
        Seconds without a heartbeat after which a deployment's run counts as crashed and its batch is continued.
    notify:
        Target of notifications about ended batches, late batches and files in quarantine: a URL that receives
        JSON, or type and name of a Prefect block, such as slack-webhook/ops. May be repeated.
    json:
        Print `{"data": [{what, name, outcome}, …]}`.
    """
    configured_server_url()
    with Progress() as progress:
        progress.doing("loading Prefect")
        from batchline.orchestration.setup import find_server_warning, set_up_server  # noqa: PLC0415 - Prefect takes seconds

        results, warning = [], find_server_warning()
        for result in set_up_server(work_pool=work_pool, crash_after_s=crash_after, notify=notify):
            results.append(result)
            progress.doing(f"{result.what} {result.name}")
    _print_results(results, json=json)
    print_warning(warning)


@app.command
def chain(
    first: str,
    then: str,
    /,
    *,
    endpoint: str = "/v1/chat/completions",
    window: WindowOption = "24h",
    json: Flag = False,
) -> None:
    """Start a batch of one file each time a batch of another completes.

    This creates an automation on the configured server; to remove it, delete it on Prefect's page Automations.

    Parameters
    ----------
    first:
        Name of the file whose batches start the next one, such as first.jsonl.
    then:
        The file to run then: a path or s3:// URI below a root that the worker's settings allow.
    endpoint:
        The endpoint of all requests in it.
    json:
        Print `{"data": [{what, name, outcome}]}`.
    """
    settings = load_settings()
    settings.require_endpoint(endpoint)
    settings.require_window_s(window)
    configured_server_url()
    with Progress() as progress:
        progress.doing("loading Prefect")
        from batchline.orchestration.setup import chain_batches  # noqa: PLC0415 - as above

        result = chain_batches(
            first, absolute_uri(then), deployment=settings.deployment, endpoint=endpoint, window=window
        )
    _print_results([result], json=json)


def print_warning(warning: str | None) -> None:
    """Print what should be changed on the server, if anything."""
    if warning is not None:
        stderr_console().print(f"warning: {warning}", markup=False, style="yellow", soft_wrap=True)


def _print_results(results: list["SetupResult"], *, json: bool) -> None:
    if json:
        print_json({"data": results})
        return
    print_rows(((result.what, result.name, result.outcome) for result in results), COLUMNS, none="")
