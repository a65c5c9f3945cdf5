"""`batchline show`: one batch."""

from batchline.cli.console import print_json
from batchline.cli.options import BatchId, JsonFlag
from batchline.cli.prefect_run import flow_run_url
from batchline.cli.summary import print_summary
from batchline.client import Batchline


def show(batch_id: BatchId, /, *, json: JsonFlag = False) -> None:
    """Show a batch: its state, counts, tokens, latency, cost, its flow run, and the paths of its files."""
    client = Batchline(origin="cli")
    batch = client.batches.record(batch_id)
    if json:
        print_json(batch.to_response(include_analytics=True).model_dump_json())
        return
    first_run_id, last_run_id = batch.flow_run_id, batch.last_flow_run_id or batch.flow_run_id
    runs = {"flow run": last_run_id, "first run": None if first_run_id == last_run_id else first_run_id}
    pages = [(name, flow_run_url(run_id) or run_id) for name, run_id in runs.items() if run_id is not None]
    print_summary(client, batch, locations=pages)
