"""`batchline show`: one batch."""

from typing import Annotated

from cyclopts import Parameter

from batchline.cli.console import print_json
from batchline.cli.summary import print_summary
from batchline.models.analytics import BatchReport
from batchline.models.errors import NotFound
from batchline.steps.engine import Engine, open_engine
from batchline.steps.lifecycle import read_report


def show(batch_id: str, /, *, json: Annotated[bool, Parameter(negative="", show_default=False)] = False) -> None:
    """Show a batch: its state, counts, tokens, latency, cost, and where its files are.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    json:
        Print the batch with its analytics as JSON.
    """
    engine = open_engine()
    batch = engine.records.get_batch(batch_id).to_response(include_analytics=True)
    if json:
        print_json(batch.model_dump_json())
    else:
        print_summary(batch, report_of(engine, batch_id), engine)


def report_of(engine: Engine, batch_id: str) -> BatchReport | None:
    """The batch's report, once it is written."""
    try:
        return read_report(engine.store, batch_id)
    except NotFound:
        return None
