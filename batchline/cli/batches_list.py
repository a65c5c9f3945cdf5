"""`batchline batches list`: batches with their state, progress and cost."""

from collections.abc import Iterable, Iterator
from uuid import UUID

from rich.text import Text

from batchline.analytics.prices import PRICE_LIST_CURRENCY
from batchline.cli.options import Flag
from batchline.cli.paging import AllFlag, page_size, print_more_hint, print_page, select_items
from batchline.cli.tables import Column, Row, print_rows
from batchline.cli.words import plain, took
from batchline.client import Batchline
from batchline.client.progress import runner_state
from batchline.engine.services import Services
from batchline.models.batches import StatusFilter
from batchline.models.formatting import money, roughly
from batchline.models.settings import Settings
from batchline.models.status import BatchStatus
from batchline.storage.records.store import BatchRecord

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
    active_first: Flag = False,
    limit: int | None = None,
    after: str | None = None,
    all_: AllFlag = False,
    json: Flag = False,
) -> None:
    """List batches, newest first: state, progress, age, duration, tokens, cost.

    Parameters
    ----------
    search:
        Only batches with that in their id, file name or metadata; case does not matter.
    status:
        in_progress includes validating and finalizing, cancelled cancelling, expired what is overdue or was late.
    created_after:
        Only batches made then or later: a date or time in ISO 8601, in UTC where it names no zone.
    created_before:
        Only batches made then or earlier.
    member_id:
        Only batches that this member made.
    active_first:
        Batches that are not over before those that are.
    limit:
        At most so many, 1 to 100; 20 where absent.
    after:
        Only batches behind the one of that id.
    all_:
        All of them, however many.
    json:
        Print a list object of batches with their analytics.
    """
    client = Batchline(origin="cli")
    page = client.batches.records(
        search=search,
        status=status,
        created_after=created_after,
        created_before=created_before,
        member_id=member_id,
        active_first=active_first,
        limit=page_size(limit, all_=all_),
        after=after,
        include="analytics",
    )
    if json:
        print_page(page, all_=all_, convert=lambda batch: batch.to_response(include_analytics=True))
        return
    rows = batch_rows(select_items(page, all_=all_), client.services)
    print_rows(rows, COLUMNS, none="no batches")
    print_more_hint(page, all_=all_)


def batch_rows(batches: Iterable[BatchRecord], services: Services) -> Iterator[Row]:
    """Yield a row for each batch."""
    now = services.records.now()
    for batch in batches:
        yield _batch_row(batch, services.settings, now)


def _batch_row(batch: BatchRecord, settings: Settings, now: float) -> Row:
    state, name = _state_cell(batch, now, settings.lease_s), plain(batch.input_filename)
    completed = f"{batch.completed:,}/{batch.total:,}" if batch.total else ""
    failed = f"{batch.failed:,}" if batch.failed else ""
    age, (tokens, cost_text) = roughly(now - batch.created_at), _usage_cells(batch, settings)
    return batch.id, name, state, completed, failed, age, took(batch, now), tokens, cost_text


def _usage_cells(batch: BatchRecord, settings: Settings) -> tuple[str, str]:
    """Return tokens and cost, empty if unknown."""
    usage = batch.analytics
    if usage is None:
        return "", ""
    # The price list is in US dollars; the currency of configured prices is unknown.
    currency = "" if settings.prices else PRICE_LIST_CURRENCY
    return f"{usage.total_tokens:,}", money(usage.total_cost, currency) if usage.total_cost else ""


def _state_cell(batch: BatchRecord, now: float, lease_s: float) -> Text:
    """Return the state, with a note if no process runs the batch."""
    note = runner_state(batch, now=now, lease_s=lease_s)
    state = Text(batch.status, style=COLOURS.get(batch.status, "cyan"))
    return Text.assemble(state, (f" ({note})", "red")) if note else state
