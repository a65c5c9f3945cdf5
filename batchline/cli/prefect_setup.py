"""`batchline prefect setup` and `chain`: what a Prefect server needs beside `prefect deploy`."""

from typing import TYPE_CHECKING

import cyclopts
import msgspec

from batchline.cli.console import messages, print_json
from batchline.cli.options import Flag, address
from batchline.cli.prefect_run import configured_server
from batchline.cli.progress import Progress
from batchline.cli.tables import Column, print_rows
from batchline.models.settings import load_settings

if TYPE_CHECKING:
    from batchline.orchestration.automations import Made

app = cyclopts.App(name="prefect", help="Set up a Prefect server for our deployments.", help_format="plaintext")
app.command("batchline.cli.prefect_serve:serve", help="Run our deployments on this machine, without a worker.")
COLUMNS = (Column("what"), Column("name"), Column("outcome"))


@app.command
def setup(
    *, work_pool: str = "batchline", crash_after: int = 90, notify: tuple[str, ...] = (), json: Flag = False
) -> None:
    """Make the work pool, the block types and the automations that are missing on the configured server.

    Safe to repeat. Afterwards: `prefect deploy --all` in the checkout, and a worker by
    `prefect worker start --pool batchline`.

    Parameters
    ----------
    work_pool:
        Name of the work pool of processes.
    crash_after:
        Seconds without a heartbeat after which a deployment's run counts as crashed, so that its batch goes on.
    notify:
        Who is told of the end of each batch, of those that will be late and of files in quarantine: a URL that
        gets JSON, or type and name of a block of Prefect, such as slack-webhook/ops. May be repeated.
    json:
        Print `{"data": [{what, name, outcome}, …]}`.
    """
    configured_server()
    with Progress(messages()) as progress:
        progress.doing("loading Prefect")
        from batchline.orchestration.setup import check_server, set_up  # noqa: PLC0415 - Prefect takes seconds

        made, warning = [], check_server()
        for each in set_up(work_pool=work_pool, crash_after_s=crash_after, notify=notify):
            made.append(each)
            progress.doing(f"{each.what} {each.name}")
    _print_made(made, json=json)
    warn(warning)


@app.command
def chain(
    first: str, then: str, /, *, endpoint: str = "/v1/chat/completions", window: str = "24h", json: Flag = False
) -> None:
    """Have a batch of one file start each time a batch of another completes.

    It is an automation of the configured server: to end it, delete that on Prefect's page Automations.

    Parameters
    ----------
    first:
        Name of the file whose batches are waited for, such as first.jsonl.
    then:
        The file to run then: a path or an s3:// address, below a root that the worker's settings allow.
    endpoint:
        The endpoint of every request in it.
    window:
        How long that batch may take.
    json:
        Print `{"data": [{what, name, outcome}]}`.
    """
    settings = load_settings()
    settings.checked_endpoint(endpoint)
    settings.checked_window_s(window)
    configured_server()
    with Progress(messages()) as progress:
        progress.doing("loading Prefect")
        from batchline.orchestration.chains import chain as make_chain  # noqa: PLC0415 - as above

        made = make_chain(first, address(then), deployment=settings.deployment, endpoint=endpoint, window=window)
    _print_made([made], json=json)


def warn(warning: str | None) -> None:
    """Print what is to be changed on the server, if anything."""
    if warning is not None:
        messages().print(f"warning: {warning}", markup=False, style="yellow", soft_wrap=True)


def _print_made(made: list["Made"], *, json: bool) -> None:
    if json:
        print_json(msgspec.json.encode({"data": made}).decode())
        return
    print_rows(((each.what, each.name, each.outcome) for each in made), COLUMNS, none="")
