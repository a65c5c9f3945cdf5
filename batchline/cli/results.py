"""`batchline batches results`: the result of each request."""

import csv
import io
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

from cyclopts import Parameter
from rich.text import Text

from batchline.cli.console import print_object
from batchline.cli.options import Flag
from batchline.cli.output_files import open_new_file, print_json_list, require_not_exists
from batchline.cli.tables import Column, Row, plain, print_rows
from batchline.client import Batchline
from batchline.client.raw_result import RawResult
from batchline.models.base import dump_json_text
from batchline.models.batches import BatchResultItem
from batchline.models.errors import InvalidInput

Format = Literal["table", "jsonl", "csv", "parquet"]
FIELD_NAMES = ("id", "custom_id", "model", "status", "error", "input_body", "response_body")
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
    batch_id: str,
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
    """Print what became of each request, in input order; works while the batch runs.

    In CSV, a text that a spreadsheet would run as a formula (one that begins with =, +, - or @ and is no number)
    gets an apostrophe before it, and control characters are escaped. JSONL and Parquet have every text as it is.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    skip:
        Leave out so many first.
    limit:
        At most so many; where absent 100 as a table, else all.
    search:
        Only requests with that in their custom_id; case does not matter.
    status:
        Only requests that are in this state.
    format:
        By the output's name where absent; else a table on a terminal, and JSONL elsewhere.
    output:
        Write to this file, which must not be there yet; Parquet needs one.
    json:
        Print one JSON object, the results as its `data`; with --output, what was written.
    """
    file_format = _choose_format(format, output, json=json)
    if output is not None:
        require_not_exists(output)
    if file_format == "table" and limit is None:
        limit = DEFAULT_TABLE_ROWS
    query = {"skip": skip, "limit": limit, "search": search, "status": status}
    items = Batchline(origin="cli").batches.raw_results(batch_id, **query)
    if output is not None:
        _save_results(items, file_format, output, batch_id, json=json)
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
        raise InvalidInput("say either --json or --format, not both", param="format")
    if requested == "parquet" and output is None:
        raise InvalidInput("Parquet is not for standard output: say --output FILE.parquet", param="output")
    if requested == "table" and output is not None:
        raise InvalidInput("a table is for a terminal: write jsonl, csv or parquet to a file", param="format")
    if requested is not None:
        return requested
    if output is not None:
        return _format_by_name(output)
    return "table" if sys.stdout.isatty() else "jsonl"


def _format_by_name(output: Path) -> Format:
    """Return the format of the file's extension; raises `InvalidInput` for an unknown one."""
    formats: dict[str, Format] = {
        "": "jsonl",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".csv": "csv",
        ".parquet": "parquet",
    }
    file_format = formats.get(output.suffix.lower())
    if file_format is None:
        raise InvalidInput(
            f"{output.name} ends in {output.suffix}, which is no format of results; let it end in .jsonl, .csv or "
            ".parquet, or say --format",
            param="output",
        )
    return file_format


def _result_row(item: BatchResultItem) -> Row:
    """Return the request's row: its status, and the beginning of the answer or the error."""
    custom_id, model = plain(item.custom_id), plain(item.model or "")
    state = Text(item.status, style=COLOURS.get(item.status, "cyan"))
    text = plain(" ".join((item.error or answer_text(item.response_body)).split())[:MAX_TEXT_CHARACTERS])
    return custom_id, state, text, model, item.id


def answer_text(body: object) -> str:
    """Return the model's text if the answer's shape is known, else the whole answer."""
    match body:
        case {"choices": [{"message": {"content": str(text)}}, *_]} | {"choices": [{"text": str(text)}, *_]}:
            return text
        case {"output": [*outputs]}:
            texts = (part for output in outputs for part in _output_texts(output))
            return " ".join(texts)
        case {"content": [*parts]}:
            return " ".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
        case None:
            return ""
    return dump_json_text(body)


def _output_texts(output: object) -> Iterable[str]:
    match output:
        case {"content": [*parts]}:
            return [str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part]
    return []


def _save_results(
    items: Iterator[RawResult], file_format: Format, output: Path, batch_id: str, *, json: bool
) -> None:
    with open_new_file(output) as file:
        count = _write_results(items, file_format, file)
    summary = {"id": batch_id, "path": str(output), "format": file_format, "results": count}
    print_object(summary, json=json, note=f"wrote {count:,} results to {output}")


def _write_results(items: Iterator[RawResult], file_format: Format, file: BinaryIO) -> int:
    """Write the items and return their number."""
    if file_format == "parquet":
        return _write_parquet(items, file)
    count = 0
    if file_format == "csv":
        file.write(_encode_csv_row(FIELD_NAMES))
    for item in items:
        count += 1
        file.write(
            _encode_csv_row(map(_escape_cell, _field_values(item))) if file_format == "csv" else item.to_line()
        )
    return count


def _encode_csv_row(row: Iterable[str | None]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(row)
    return text.getvalue().encode()


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
    return [item.id, item.custom_id, item.model, item.status, item.error, *bodies]


def _write_parquet(items: Iterator[RawResult], file: BinaryIO) -> int:
    import pyarrow as pa  # noqa: PLC0415 - its import takes half a second
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    schema = pa.schema([(name, pa.string()) for name in FIELD_NAMES])
    count = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for block in _split_blocks(items):
            count += len(block)
            columns = zip(*map(_field_values, block), strict=True)
            writer.write_table(pa.table([pa.array(column, pa.string()) for column in columns], schema=schema))
    return count


def _split_blocks(items: Iterator[RawResult]) -> Iterator[list[RawResult]]:
    """Yield blocks of up to `MAX_BLOCK_ITEMS` items, or about `MAX_BLOCK_BYTES` of bodies."""
    block: list[RawResult] = []
    size = 0
    for item in items:
        block.append(item)
        size += len(item.input_text or b"") + len(item.response_text or b"")
        if len(block) == MAX_BLOCK_ITEMS or size >= MAX_BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block
