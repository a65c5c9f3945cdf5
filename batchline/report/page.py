"""Renders the report page: one self-contained file that loads nothing, with all foreign text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from batchline.models.analytics import BatchReport
from batchline.models.manifest import Manifest
from batchline.report.charts import build_histogram, build_timeline
from batchline.report.formatting import (
    ERROR_MEANINGS,
    FILTERS,
    MARK_ADVICE,
    MARK_MEANINGS,
    outcome_sentence,
    unanswered_by_word,
)
from batchline.report.samples import Sample, read_samples
from batchline.storage.objects import layout
from batchline.storage.objects.store import ObjectStore
from batchline.storage.records.store import BatchRecord

if TYPE_CHECKING:
    from jinja2 import BaseLoader, Environment, Template

TEMPLATE_FOLDER: Final = Path(__file__).parent
MAX_SHOWN_MODELS: Final = 25
MAX_SHOWN_ERRORS: Final = 20
MAX_SHOWN_FINISH_REASONS: Final = 20


def write_page(store: ObjectStore, batch: BatchRecord, report: BatchReport, manifest: Manifest) -> None:
    """Write the page of a finished batch, replacing an earlier one."""
    samples = read_samples(store, layout.final_keys(manifest.prefix).errors, manifest.first_failures)
    store.put(layout.report_page_key(batch.id), render_page(batch, report, samples))


def render_page(batch: BatchRecord, report: BatchReport, samples: Mapping[str, Sequence[Sample]]) -> bytes:
    """Return the page of a finished batch as HTML, with samples of its failures by error code."""
    files = [
        ("output.jsonl", "requests that succeeded", batch.output_file_id is not None),
        ("errors.jsonl", "requests that failed", batch.error_file_id is not None),
        ("requests.parquet", "metrics, one row per request", True),
        ("report.json", "the data of this page", True),
    ]
    page = _load_template().render(
        template_context(batch, report, samples),
        files=[(name, content) for name, content, exists in files if exists],
        files_at="",
    )
    # Model names and messages may contain lone surrogates, which UTF-8 cannot encode.
    return page.encode("utf-8", errors="replace")


def template_context(
    batch: BatchRecord, report: BatchReport, samples: Mapping[str, Sequence[Sample]]
) -> dict[str, Any]:
    """Return the templates' variables for a finished batch, except `files_at`, the prefix of file links."""
    models = sorted(report.models, key=lambda model: (-model.requests, model.model))
    others = models[MAX_SHOWN_MODELS:]
    summed = ("requests", "failed", "prompt_tokens", "completion_tokens", "total_tokens")
    other_models = {
        "models": len(others),
        **{name: sum(getattr(model, name) for model in others) for name in summed},
    }
    started_at = batch.in_progress_at
    return {
        "batch": batch,
        "report": report,
        "usage": batch.analytics,
        "outcome": outcome_sentence(batch, report),
        "unanswered": unanswered_by_word(report),
        # Timestamps are whole seconds; a short batch must not appear to have taken no time.
        "took_s": None if started_at is None else max(1, batch.ended_at - started_at),
        "errors": (batch.errors or ())[:MAX_SHOWN_ERRORS],
        "samples": samples,
        "meanings": ERROR_MEANINGS,
        "finish_reasons": list(report.finish_reasons.items())[:MAX_SHOWN_FINISH_REASONS],
        "mark_meanings": MARK_MEANINGS,
        "mark_advice": MARK_ADVICE,
        "histogram": build_histogram(report),
        "timeline": build_timeline(report),
        "models": models[:MAX_SHOWN_MODELS],
        "other_models": other_models if others else None,
    }


@cache
def _load_template() -> Template:
    from jinja2 import FileSystemLoader  # noqa: PLC0415 - only needed at the end

    return build_environment(FileSystemLoader(TEMPLATE_FOLDER)).get_template("page.html")


def build_environment(loader: BaseLoader) -> Environment:
    """Return the template environment, used by other packages with the same design as well."""
    from jinja2 import Environment, StrictUndefined  # noqa: PLC0415 - only needed at the end

    # StrictUndefined: a missing variable must fail in tests, not render as empty text.
    env = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    env.filters.update(FILTERS)
    return env
