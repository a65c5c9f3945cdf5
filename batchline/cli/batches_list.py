"""`batchline batches list`: batches with their state, progress and cost."""

import time
from uuid import UUID

from rich.text import Text

from batchline.cli.options import AllFlag, Flag, JsonFlag, LimitOption
from batchline.cli.paging import page_size, print_more_hint, print_page, select_items
from batchline.cli.tables import Column, Row, plain, print_rows
from batchline.client import Batchline, BatchRecord
from batchline.models.batches import StatusFilter
from batchline.models.formatting import format_age, format_money, format_span
from batchline.models.status import TERMINAL_STATUSES, BatchStatus

COLOURS = {
    BatchStatus.COMPLETED: "green",
    BatchStatus.FAILED: "red",
    BatchStatus.EXPIRED: "red",
    BatchStatus.CANCELLED: "yellow",
}
COLUMNS = (
    Column("batch"),
    Column("file", least=8),
    Column("status"),
    *(Column(name, right=True) for name in ("completed", "failed", "age", "took", "tokens", "cost")),
)


def list_(
    *,
    search: str | None = None,
    status: StatusFilter | None = None,
    created_after: str | None = None,
    created_before: str | None = None,
    member_id: UUID | None = None,
    paused: Flag = False,
    active_first: Flag = False,
    limit: LimitOption = None,
    after: str | None = None,
    all_: AllFlag = False,
    json: JsonFlag = False,
) -> None:
    """List batches, newest first: state, progress, age, duration, tokens, cost.

    Parameters
    ----------
    search:
        Only batches with this text in their id, file name or metadata, ignoring case.
    status:
        in_progress includes validating and finalizing, cancelled includes cancelling, expired includes late ones.
    created_after:
        Only batches created then or later: a date or time in ISO 8601, in UTC without a zone.
    created_before:
        Only batches created then or earlier.
    member_id:
        Only batches of this member.
    paused:
        Only batches that are paused.
    active_first:
        Active batches before ended ones.
    after:
        Only batches listed after the one with this id.
    """
    client = Batchline(origin="cli")
    page = client.batches.records(
        search=search,
        status=status,
        created_after=created_after,
        created_before=created_before,
        member_id=member_id,
        paused=True if paused else None,
        active_first=active_first,
        limit=page_size(limit, all_=all_),
        after=after,
        include="analytics",
    )
    if json:
        print_page(page, all_=all_, convert=lambda batch: batch.to_response(include_analytics=True))
        return
    rows = (_batch_row(client, batch) for batch in select_items(page, all_=all_))
    print_rows(rows, COLUMNS, none="no batches")
    print_more_hint(page, all_=all_)


def _batch_row(client: Batchline, batch: BatchRecord) -> Row:
    state, now = Text(batch.status, COLOURS.get(batch.status, "cyan")), time.time()
    note = client.batches.runner_state(batch)
    until, usage = batch.ended_at if batch.status in TERMINAL_STATUSES else now, batch.analytics
    return (
        batch.id,
        plain(batch.input_filename),
        Text.assemble(state, (f" ({note})", "red")) if note else state,
        f"{batch.completed:,}/{batch.total:,}" if batch.total else "",
        f"{batch.failed:,}" if batch.failed else "",
        format_age(now - batch.created_at),
        "" if batch.in_progress_at is None else format_span(max(0.0, until - batch.in_progress_at)),
        f"{usage.total_tokens:,}" if usage else "",
        format_money(usage.total_cost, client.currency) if usage and usage.total_cost else "",
    )
