"""`batchline show`: one batch."""

from collections.abc import Iterator
from typing import Annotated

from cyclopts import Parameter

from batchline.cli.console import print_json
from batchline.cli.prefect_run import flow_run_url
from batchline.cli.summary import print_summary
from batchline.engine.services import open_services
from batchline.report.report_data import report_of
from batchline.storage.records.store import BatchRecord


def show(batch_id: str, /, *, json: Annotated[bool, Parameter(negative="", show_default=False)] = False) -> None:
    """Show a batch: its state, counts, tokens, latency, cost, its flow run, and where its files are.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    json:
        Print the batch with its analytics as JSON.
    """
    services = open_services()
    record = services.records.get_batch(batch_id)
    batch = record.to_response(include_analytics=True)
    if json:
        print_json(batch.model_dump_json())
    else:
        print_summary(
            batch,
            report_of(services.store, batch_id),
            services,
            locations=tuple(_flow_run_rows(record)),
            is_retried=bool(record.generation),
        )


def _flow_run_rows(batch: BatchRecord) -> Iterator[tuple[str, str]]:
    """Yield the addresses of the batch's last flow run, and of the first if it is another."""
    first_run_id, last_run_id = batch.flow_run_id, batch.last_flow_run_id or batch.flow_run_id
    if last_run_id is not None:
        yield "flow run", flow_run_url(last_run_id) or last_run_id
    if first_run_id is not None and first_run_id != last_run_id:
        yield "first run", flow_run_url(first_run_id) or first_run_id
