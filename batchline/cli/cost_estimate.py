"""`batchline batches cost-estimate`: what a file's requests will cost."""

from decimal import Decimal

from batchline.cli.console import messages, print_json, results
from batchline.cli.options import Flag
from batchline.cli.progress import Progress
from batchline.cli.tables import Column, Row, print_rows
from batchline.cli.words import plain
from batchline.operations import Batchline
from batchline.operations.estimate import ATTACHMENT_TOKENS, CostEstimate, ModelEstimate, estimate_cost

COLUMNS = (
    Column("model", least=12),
    *(
        Column(name, right=True)
        for name in ("requests", "input tokens", "input cost", "output tokens", "output cost")
    ),
)


def cost_estimate(file: str, /, *, json: Flag = False) -> None:
    """Estimate what a file's requests will cost, before any is sent.

    Parameters
    ----------
    file:
        A path to JSONL, plain or as .gz or .zst; or the id of an uploaded file.
    json:
        Print the figures as JSON.
    """
    with Batchline(source="cli") as client, Progress(messages()) as progress:
        progress.doing(f"reading {file}")
        found = estimate_cost(client, file)
    if json:
        print_json(found.to_json().decode())
        return
    print_rows([_row(model, found) for model in found.models], COLUMNS, none="")
    results().print(f"\n{_total(found)}", markup=False)
    for note in _notes(found):
        messages().print(note, markup=False)


def _row(model: ModelEstimate, found: CostEstimate) -> Row:
    name, requests, tokens = plain(model.model or "(none)"), f"{model.requests:,}", f"{model.input_tokens:,}"
    input_cost, output_cost = _cost(model.input_cost, found) or "no price", _cost(model.output_cost_at_most, found)
    most = "no limit" if model.without_limit else f"≤ {model.output_tokens_at_most:,}"
    output_cost = f"≤ {output_cost}" if output_cost and not model.without_limit else ""
    return name, requests, tokens, input_cost, most, output_cost


def _total(found: CostEstimate) -> str:
    words = f"{found.requests:,} requests, about {found.input_tokens:,} input tokens (a rough estimate)"
    if found.least is None:
        return f"{words}; no total"
    if found.most is None:
        return f"{words}; {_cost(found.least, found)} without output, which has no bound"
    if Decimal(found.most) == Decimal(found.least):
        return f"{words}; {_cost(found.least, found)}"
    return f"{words}; {_cost(found.least, found)} without output, at most {_cost(found.most, found)}"


def _cost(amount: str | None, found: CostEstimate) -> str:
    return "" if amount is None else f"{amount} {found.currency or ''}".rstrip()


def _notes(found: CostEstimate) -> list[str]:
    """What the figures leave out."""
    notes = []
    if found.attachments:
        notes.append(
            f"{found.attachments:,} images or files in base64 count as {ATTACHMENT_TOKENS:,} input tokens each"
        )
    if found.unpriced_models:
        names = ", ".join(name or "(none)" for name in found.unpriced_models)
        notes.append(f"no price is known for {names}; set BATCHLINE_PRICES")
    if found.without_limit:
        notes.append(
            f"{found.without_limit:,} requests set no limit to their answers (max_completion_tokens, max_tokens, "
            "max_output_tokens): what these may cost has no upper bound"
        )
    if found.unreadable:
        notes.append(
            f"{found.unreadable:,} lines are no requests and not counted; `batchline validate` tells more"
        )
    return notes
