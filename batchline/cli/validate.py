"""`batchline validate`: all that is wrong with an input file."""

import json as jsonlib
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from batchline.cli.exits import Exit
from batchline.models.batches import BatchError
from batchline.models.settings import load_settings
from batchline.steps.intake import input_blocks
from batchline.steps.validate import Validation, validate_input


def validate(
    file: Path, *, endpoint: str | None = None, json: Annotated[bool, Parameter(negative="")] = False
) -> int:
    """Check an input file and print every error; exit status 2 if there is one.

    Parameters
    ----------
    file:
        JSONL of requests, plain or as .gz or .zst.
    endpoint:
        The endpoint of every request; the first request's own where it is not given.
    json:
        Print `{"data": [{code, line, message, param}, …]}`.
    """
    found = validate_input(
        lambda: input_blocks(file),
        batch_id="",
        input_key=str(file),
        endpoint=endpoint,
        settings=load_settings(),
        max_errors=None,
    )
    if json:
        entries = [error.model_dump() for error in found.errors]
        sys.stdout.write(jsonlib.dumps({"data": entries}, ensure_ascii=False) + "\n")
    else:
        _print(file, found)
    return Exit.BAD_INPUT if found.error_count else Exit.OK


def _print(file: Path, found: Validation) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for error in found.errors:
        console.print(f"{file}{_where(error)}: {error.message} ({error.code})", markup=False)
    if found.plan is None:
        console.print(f"{file}: {found.error_count:,} errors; no request would be sent", markup=False)
        return
    plan = found.plan
    console.print(
        f"{file}: {plan.total:,} requests to {plan.endpoint} for {', '.join(plan.models) or 'no model'}, "
        f"{plan.size_bytes:,} bytes, about {found.estimated_tokens:,} input tokens (a rough estimate)",
        markup=False,
    )


def _where(error: BatchError) -> str:
    return "" if error.line is None else f":{error.line}"
