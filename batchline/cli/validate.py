"""`batchline validate`: print all errors in an input file."""

import json as jsonlib
from pathlib import Path

from batchline.cli.console import print_json, stdout_console
from batchline.cli.error_groups import describe_lines, group_errors
from batchline.cli.exit_codes import ExitCode
from batchline.cli.options import EndpointOption, Flag
from batchline.cli.progress import Progress
from batchline.client import Validation, validate_file


def validate(
    file: Path,
    /,
    *,
    endpoint: EndpointOption = None,
    json: Flag = False,
) -> int:
    """Check an input file and print all errors; the exit status is 2 if there is one.

    Parameters
    ----------
    file:
        JSONL of requests, plain or as .gz or .zst.
    json:
        Print `{"data": [{code, line, message, param}, …]}`.
    """
    with Progress() as progress:
        progress.doing(f"checking {file.name}")
        validation = validate_file(file, endpoint=endpoint)
    if json:
        print_json(jsonlib.dumps({"data": [error.model_dump() for error in validation.errors]}))
    else:
        _print_validation(file, validation)
    return ExitCode.BAD_INPUT if validation.error_count else ExitCode.OK


def _print_validation(file: Path, validation: Validation) -> None:
    console = stdout_console()
    for error in group_errors(validation.errors):
        # A single line as editors understand it, else the lines in words.
        location = f":{error.lines[0]}" if len(error.lines) == 1 else ""
        location = f": {describe_lines(error.lines)}" if len(error.lines) > 1 else location
        console.print(f"{file}{location}: {error.message} ({error.code})", markup=False)
    if validation.plan is None:
        count = f"{validation.error_count:,} error{'s' if validation.error_count > 1 else ''}"
        console.print(f"{file}: {count}; no request would be sent", markup=False)
        return
    plan = validation.plan
    console.print(
        f"{file}: {plan.total:,} requests to {plan.endpoint} for {', '.join(plan.models) or 'no model'}, "
        f"{plan.size_bytes:,} bytes, about {validation.estimated_tokens:,} input tokens (a rough estimate)",
        markup=False,
    )
