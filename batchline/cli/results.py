"""`batchline batches results`: the result of each request."""

import csv
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from cyclopts import Parameter
from rich.text import Text

from batchline.cli.console import print_object
from batchline.cli.options import BatchId, Flag
from batchline.cli.output_files import open_new_file, print_json_list, require_not_exists
from batchline.cli.tables import Column, Row, plain, print_rows
from batchline.client import Batchline
from batchline.client.raw_result import RawResult, split_blocks
from batchline.models.base import dump_json_text
from batchline.models.batches import BatchResultItem
from batchline.models.errors import InvalidInput
from batchline.web.message_text import response_messages

Format = Literal["table", "jsonl", "csv", "parquet"]
FORMATS_BY_SUFFIX: dict[str, Format] = {
    "": "jsonl",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
}
FIELD_NAMES = (
    *("id", "custom_id", "model", "status", "error", "input_body", "response_body"),
    *("finish_reason", "mark"),
)
COLUMNS = (
    Column("custom_id", least=24),
    Column("status"),
    Column("answer", least=30),
    Column("model"),
    Column("id"),
)
COLOURS = {"completed": "green", "failed": "red", "expired": "red", "cancelled": "yellow"}
MAX_BLOCK_ITEMS = 1_000
MAX_BLOCK_BYTES = 64 * 2**20
CONTROL_CHARACTERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
DEFAULT_TABLE_ROWS = 100
MAX_TEXT_CHARACTERS = 200


def results(
    batch_id: BatchId,
    /,
    *,
    skip: int = 0,
    limit: int | None = None,
    search: str | None = None,
    status: Literal["pending", "in_progress", "completed", "failed", "expired", "cancelled"] | None = None,
    format: Format | None = None,  # noqa: A002 - the option's name
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    json: Flag = False,
) -> None:
    """Print the result of each request, in input order, also while the batch runs.

    In CSV, text that a spreadsheet would run as a formula (it begins with =, +, - or @ and is not a number) is
    preceded by an apostrophe, and control characters are escaped. JSONL and Parquet have all text unchanged.

    Parameters
    ----------
    skip:
        Number of requests to skip.
    limit:
        Maximum number; by default 100 as a table, else all.
    search:
        Only requests with this text in their custom_id, ignoring case.
    status:
        Only requests with this status.
    format:
        By default that of the output's name; else a table on a terminal, and JSONL elsewhere.
    output:
        Write to this file, which must not exist; required for Parquet.
    json:
        Print one JSON object with the results as `data`; with --output, path, format and number.
    """
    file_format = _choose_format(format, output, json=json)
    if output is not None:
        require_not_exists(output)
    if file_format == "table" and limit is None:
        limit = DEFAULT_TABLE_ROWS
    query = {"skip": skip, "limit": limit, "search": search, "status": status}
    items = Batchline(origin="cli").batches.raw_results(batch_id, **query)
    if output is not None:
        with open_new_file(output) as file:
            count = _write_results(items, file_format, file)
        summary = {"id": batch_id, "path": str(output), "format": file_format, "results": count}
        print_object(summary, json=json, note=f"wrote {count:,} results to {output}")
    elif json:
        print_json_list(item.to_json() for item in items)
    elif file_format == "table":
        print_rows((_result_row(item.to_item()) for item in items), COLUMNS, none="no requests")
    else:
        sys.stdout.flush()
        _write_results(items, file_format, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _choose_format(requested: Format | None, output: Path | None, *, json: bool) -> Format:
    """Return the output format; raises `InvalidInput` for options that exclude each other."""
    if json and requested is not None and output is None:
        raise InvalidInput("give either --json or --format, not both", param="format")
    if requested == "parquet" and output is None:
        raise InvalidInput("Parquet cannot go to standard output: add --output FILE.parquet", param="output")
    if requested == "table" and output is not None:
        raise InvalidInput("a table cannot be written to a file: choose jsonl, csv or parquet", param="format")
    if requested is not None:
        return requested
    if output is None:
        return "table" if sys.stdout.isatty() else "jsonl"
    file_format = FORMATS_BY_SUFFIX.get(output.suffix.lower())
    if file_format is None:
        raise InvalidInput(
            f"{output.name} ends in {output.suffix}, which is not a format of results; use .jsonl, .csv or "
            ".parquet, or add --format",
            param="output",
        )
    return file_format


def _result_row(item: BatchResultItem) -> Row:
    """Return the request's row: its status, and the beginning of the answer or the error."""
    custom_id, model = plain(item.custom_id), plain(item.model or "")
    state = Text(item.status, style=COLOURS.get(item.status, "cyan"))
    if item.mark:
        state.append(f", {item.mark.replace('_', ' ')}", "yellow")
    answer = " ".join(message.text for message in response_messages(item.response_body))
    if not answer and item.response_body is not None:  # its shape is unknown
        answer = dump_json_text(item.response_body)
    text = plain(" ".join((item.error or answer).split())[:MAX_TEXT_CHARACTERS])
    return custom_id, state, text, model, item.id


def _write_results(items: Iterator[RawResult], file_format: Format, file: BinaryIO) -> int:
    """Write the items and return their number."""
    if file_format == "parquet":
        return _write_parquet(items, file)
    count = 0
    if file_format == "jsonl":
        for count, item in enumerate(items, 1):  # noqa: B007 - the last number is the result
            file.write(item.to_line())
        return count
    text = io.TextIOWrapper(file, "utf-8", newline="")
    writer = csv.writer(text)
    try:
        writer.writerow(FIELD_NAMES)
        for count, item in enumerate(items, 1):  # noqa: B007 - as above
            writer.writerow(map(_escape_cell, _field_values(item)))
    finally:
        text.detach()  # or its end would close the file
    return count


def _escape_cell(text: str | None) -> str | None:
    """Return the text without control characters, and safe to open in a spreadsheet.

    Spreadsheets run text that begins with `=`, `+`, `-` or `@` as a formula; an apostrophe prevents it (OWASP, CSV
    injection). Numbers stay as they are.
    """
    if not text:
        return text
    text = CONTROL_CHARACTERS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return f"'{text}" if text[0] in "=+-@" and not NUMBER.fullmatch(text) else text


def _field_values(item: RawResult) -> list[str | None]:
    """Return the item's fields; bodies as JSON, byte for byte."""
    bodies = [None if text is None else text.decode() for text in (item.input_text, item.response_text)]
    return [
        *(item.id, item.custom_id, item.model, item.status, item.error, *bodies),
        *(item.finish_reason, item.mark),
    ]


def _write_parquet(items: Iterator[RawResult], file: BinaryIO) -> int:
    import pyarrow as pa  # noqa: PLC0415 - its import takes half a second
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    schema = pa.schema([(name, pa.string()) for name in FIELD_NAMES])
    count = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for block in split_blocks(items, max_items=MAX_BLOCK_ITEMS, max_bytes=MAX_BLOCK_BYTES):
            count += len(block)
            columns = zip(*map(_field_values, block), strict=True)
            writer.write_table(pa.table([pa.array(column, pa.string()) for column in columns], schema=schema))
    return count
