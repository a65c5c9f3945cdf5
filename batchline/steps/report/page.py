"""Makes the page: everything in one file, nothing loaded from elsewhere, whatever is foreign escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from batchline.models.analytics import BatchReport, ModelFigures
from batchline.steps.report.charts import histogram, timeline
from batchline.steps.report.samples import Sample, read_samples
from batchline.steps.report.words import FILTERS, MEANINGS, outcome, unanswered
from batchline.steps.write import Manifest
from batchline.storage import layout
from batchline.storage.objects import ObjectStore
from batchline.storage.records import BatchRecord

if TYPE_CHECKING:
    from jinja2 import BaseLoader, Environment, Template

FOLDER: Final = Path(__file__).parent
SHOWN_MODELS: Final = 25
SHOWN_ERRORS: Final = 20


def write_page(store: ObjectStore, batch: BatchRecord, report: BatchReport, manifest: Manifest) -> None:
    """Write the page of a batch that is over, in place of an earlier one."""
    samples = read_samples(store, layout.final_keys(manifest.prefix).errors, manifest.first_failures)
    store.put(layout.report_page_key(batch.id), make_page(batch, report, samples))


def make_page(batch: BatchRecord, report: BatchReport, samples: Mapping[str, Sequence[Sample]]) -> bytes:
    """The page of a batch that is over, with some of its failed requests by error code."""
    page = _template().render(told_of(batch, report, samples), files=_files(batch), files_at="")
    return page.encode("utf-8", errors="replace")


def told_of(batch: BatchRecord, report: BatchReport, samples: Mapping[str, Sequence[Sample]]) -> dict[str, Any]:
    """What `outcome.html`, `sections.html` and `details.html` tell of a batch that is over.

    They also need `files_at`: what the links to its files start with.
    """
    shown = sorted(report.models, key=lambda model: (-model.requests, model.model))
    return {
        "batch": batch,
        "report": report,
        "usage": batch.analytics,
        "outcome": outcome(batch, report),
        "unanswered": unanswered(report),
        "took_s": _took_s(batch),
        "errors": (batch.errors or ())[:SHOWN_ERRORS],
        "samples": samples,
        "meanings": MEANINGS,
        "histogram": histogram(report),
        "timeline": timeline(report),
        "models": shown[:SHOWN_MODELS],
        "other_models": _together(shown[SHOWN_MODELS:]),
    }


@cache
def _template() -> Template:
    from jinja2 import FileSystemLoader  # noqa: PLC0415 - only needed at the end

    return environment(FileSystemLoader(FOLDER)).get_template("page.html")


def environment(loader: BaseLoader) -> Environment:
    """What templates are rendered by, those of other rooms that look like this page as well."""
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - only needed at the end

    made = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters.update(FILTERS)
    return made


def _took_s(batch: BatchRecord) -> int | None:
    """From the first request to the end."""
    if batch.in_progress_at is None:
        return None
    return max(1, batch.ended_at - batch.in_progress_at)


def _together(models: Sequence[ModelFigures]) -> dict[str, Any] | None:
    """The sums of the models that are not shown one by one."""
    if not models:
        return None
    names = ("requests", "failed", "prompt_tokens", "completion_tokens", "total_tokens")
    return {"models": len(models), **{name: sum(getattr(each, name) for each in models) for name in names}}


def _files(batch: BatchRecord) -> list[tuple[str, str]]:
    """The files that lie beside the page, and what is in them."""
    found = [
        ("output.jsonl", "requests that succeeded", batch.output_file_id is not None),
        ("errors.jsonl", "requests that failed", batch.error_file_id is not None),
        ("requests.parquet", "figures, a row a request", True),
        ("report.json", "the figures of this page", True),
    ]
    return [(name, content) for name, content, is_there in found if is_there]
