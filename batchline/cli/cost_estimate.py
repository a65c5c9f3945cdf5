"""`batchline batches cost-estimate`: the expected cost of a file's requests."""

from decimal import Decimal

from batchline.cli.console import print_json, print_note, stdout_console
from batchline.cli.options import JsonFlag
from batchline.cli.progress import Progress
from batchline.cli.tables import Column, plain, print_rows
from batchline.client import Batchline
from batchline.client.estimate import TOKENS_PER_ATTACHMENT, CostEstimate, estimate_cost

COLUMNS = (
    Column("model", least=12),
    *(
        Column(name, right=True)
        for name in ("requests", "input tokens", "input cost", "output tokens", "output cost")
    ),
)


def cost_estimate(file: str, /, *, json: JsonFlag = False) -> None:
    """Estimate the cost of a file's requests before any is sent.

    Parameters
    ----------
    file:
        A path to JSONL, plain or as .gz or .zst; or the id of an uploaded file.
    """
    with Batchline(origin="cli") as client, Progress() as progress:
        progress.doing(f"reading {file}")
        estimate = estimate_cost(client, file)
    if json:
        print_json(estimate.to_json().decode())
        return
    rows = [
        (
            plain(model.model or "(none)"),
            f"{model.requests:,}",
            f"{model.input_tokens:,}",
            _format_cost(model.input_cost, estimate) or "no price",
            "no limit" if model.without_limit else f"≤ {model.output_tokens_at_most:,}",
            f"≤ {cost}"
            if (cost := _format_cost(model.output_cost_at_most, estimate)) and not model.without_limit
            else "",
        )
        for model in estimate.models
    ]
    print_rows(rows, COLUMNS, none="")
    stdout_console().print(f"\n{_describe_total(estimate)}", markup=False)
    for note in _list_notes(estimate):
        print_note(note)


def _describe_total(estimate: CostEstimate) -> str:
    summary = f"{estimate.requests:,} requests, about {estimate.input_tokens:,} input tokens (a rough estimate)"
    if estimate.least is None:
        return f"{summary}; no total"
    if estimate.most is None:
        return f"{summary}; {_format_cost(estimate.least, estimate)} without output, which is unbounded"
    if Decimal(estimate.most) == Decimal(estimate.least):
        return f"{summary}; {_format_cost(estimate.least, estimate)}"
    least, most = (_format_cost(cost, estimate) for cost in (estimate.least, estimate.most))
    return f"{summary}; {least} without output, at most {most}"


def _format_cost(amount: str | None, estimate: CostEstimate) -> str:
    return "" if amount is None else f"{amount} {estimate.currency or ''}".rstrip()


def _list_notes(estimate: CostEstimate) -> list[str]:
    """Return notes on what the estimate does not include."""
    notes = []
    if estimate.attachments:
        notes.append(
            f"{estimate.attachments:,} images or files in base64 count as "
            f"{TOKENS_PER_ATTACHMENT:,} input tokens each"
        )
    if estimate.unpriced_models:
        names = ", ".join(name or "(none)" for name in estimate.unpriced_models)
        notes.append(f"no price is known for {names}; set BATCHLINE_PRICES")
    if estimate.without_limit:
        notes.append(
            f"{estimate.without_limit:,} requests do not limit their answers (max_completion_tokens, max_tokens, "
            "max_output_tokens): their cost has no upper bound"
        )
    if estimate.unreadable:
        notes.append(
            f"{estimate.unreadable:,} lines are not requests and are not counted; see `batchline validate`"
        )
    return notes
