"""`batchline validate`: all that is wrong with an input file."""

import json as jsonlib
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from batchline.cli.console import messages, print_json, results
from batchline.cli.exits import Exit
from batchline.cli.grouping import ErrorGroup, grouped, places_of
from batchline.cli.progress import Progress
from batchline.models.settings import load_settings
from batchline.steps.intake import input_blocks
from batchline.steps.validate import Validation, validate_input


def validate(
    file: Path,
    /,
    *,
    endpoint: str | None = None,
    json: Annotated[bool, Parameter(negative="", show_default=False)] = False,
) -> int:
    """Check an input file and print every error; exit status 2 if there is one.

    Parameters
    ----------
    file:
        JSONL of requests, plain or as .gz or .zst.
    endpoint:
        The endpoint of every request, such as /v1/embeddings; by default the first request's own.
    json:
        Print `{"data": [{code, line, message, param}, …]}`.
    """
    settings = load_settings()
    with Progress(messages()) as progress:
        progress.doing(f"checking {file.name}")
        found = validate_input(
            lambda: input_blocks(file),
            batch_id="",
            input_key=str(file),
            endpoint=None if endpoint is None else settings.checked_endpoint(endpoint),
            settings=settings,
            max_errors=None,
        )
    if json:
        print_json(jsonlib.dumps({"data": [error.model_dump() for error in found.errors]}))
    else:
        _print(file, found)
    return Exit.BAD_INPUT if found.error_count else Exit.OK


def _print(file: Path, found: Validation) -> None:
    console = results()
    for error in grouped(found.errors):
        console.print(f"{file}{_where(error)}: {error.message} ({error.code})", markup=False)
    if found.plan is None:
        count = f"{found.error_count:,} error{'s' if found.error_count > 1 else ''}"
        console.print(f"{file}: {count}; no request would be sent", markup=False)
        return
    plan = found.plan
    console.print(
        f"{file}: {plan.total:,} requests to {plan.endpoint} for {', '.join(plan.models) or 'no model'}, "
        f"{plan.size_bytes:,} bytes, about {found.estimated_tokens:,} input tokens (a rough estimate)",
        markup=False,
    )


def _where(error: ErrorGroup) -> str:
    """The place as editors know it, or the lines in words if there are several."""
    if not error.lines:
        return ""
    return f":{error.lines[0]}" if len(error.lines) == 1 else f": {places_of(error.lines)}"
