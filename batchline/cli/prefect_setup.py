"""`batchline prefect setup`: what a Prefect server needs beside `prefect deploy`."""

import cyclopts
import msgspec

from batchline.cli.console import messages, print_json
from batchline.cli.options import Flag
from batchline.cli.prefect_run import configured_server
from batchline.cli.progress import Progress
from batchline.cli.tables import Column, Row, print_rows

app = cyclopts.App(name="prefect", help="Set up a Prefect server for our deployments.", help_format="plaintext")
COLUMNS = (Column("what"), Column("name"), Column("outcome"))


@app.command
def setup(
    *, work_pool: str = "batchline", crash_after: int = 90, notify: str | None = None, json: Flag = False
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
        A URL that is sent the end of each batch and word of those that will be late, such as a chat's webhook.
    json:
        Print `{"data": [{what, name, outcome}, …]}`.
    """
    configured_server()
    with Progress(messages()) as progress:
        progress.doing("loading Prefect")
        from batchline.orchestration.setup import set_up  # noqa: PLC0415 - Prefect takes seconds to import

        made = []
        for each in set_up(work_pool=work_pool, crash_after_s=crash_after, notify=notify):
            made.append(each)
            progress.doing(f"{each.what} {each.name}")
    if json:
        print_json(msgspec.json.encode({"data": made}).decode())
        return
    rows = (Row((each.what, each.name, each.outcome), (each.what, each.name), each.outcome) for each in made)
    print_rows(rows, COLUMNS, none="")
