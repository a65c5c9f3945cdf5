"""`batchline show`: one batch."""

from collections.abc import Iterator
from typing import Annotated

from cyclopts import Parameter

from batchline.cli.console import print_json
from batchline.cli.prefect_run import page_of
from batchline.cli.summary import print_summary
from batchline.steps.engine import open_engine
from batchline.steps.reports import report_of
from batchline.storage.records import BatchRecord


def show(batch_id: str, /, *, json: Annotated[bool, Parameter(negative="", show_default=False)] = False) -> None:
    """Show a batch: its state, counts, tokens, latency, cost, its flow run, and where its files are.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    json:
        Print the batch with its analytics as JSON.
    """
    engine = open_engine()
    record = engine.records.get_batch(batch_id)
    batch = record.to_response(include_analytics=True)
    if json:
        print_json(batch.model_dump_json())
    else:
        print_summary(
            batch,
            report_of(engine.store, batch_id),
            engine,
            places=tuple(_flow_runs(record)),
            is_retried=bool(record.generation),
        )


def _flow_runs(batch: BatchRecord) -> Iterator[tuple[str, str]]:
    """Where to see the flow run that has or had the batch, and the one that made it where that is another."""
    first, last = batch.flow_run_id, batch.last_flow_run_id or batch.flow_run_id
    if last is not None:
        yield "flow run", page_of(last) or last
    if first is not None and first != last:
        yield "first run", page_of(first) or first
