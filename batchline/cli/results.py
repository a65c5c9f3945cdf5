"""`batchline batches results`: what became of each request."""

import csv
import io
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import msgspec
from cyclopts import Parameter
from rich.text import Text

from batchline.cli.console import messages, print_json
from batchline.cli.options import Flag
from batchline.cli.output import check_free, new_file, print_list
from batchline.cli.tables import Column, Row, print_rows
from batchline.cli.words import plain
from batchline.models.batches import BatchResultItem
from batchline.models.errors import InvalidInput
from batchline.models.wire import json_text
from batchline.operations import Batchline
from batchline.operations.result import Result

Format = Literal["table", "jsonl", "csv", "parquet"]
FIELDS = ("id", "custom_id", "model", "status", "error", "input_body", "response_body")
COLUMNS = (
    Column("custom_id", least=24),
    Column("status"),
    Column("answer", least=30),
    Column("model"),
    Column("id"),
)
COLOURS = {"completed": "green", "failed": "red", "expired": "red", "cancelled": "yellow"}
ITEMS_AT_ONCE = 1_000
BLOCK_BYTES = 64 * 2**20
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")
SHOWN = 100
TEXT_CHARACTERS = 200


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
    kind = _kind(format, output, json=json)
    if output is not None:
        check_free(output)
    if kind == "table" and limit is None:
        limit = SHOWN
    query = {"skip": skip, "limit": limit, "search": search, "status": status}
    items = Batchline(source="cli").batches.result_texts(batch_id, **query)
    if output is not None:
        _save(items, kind, output, batch_id, json=json)
    elif json:
        print_list(item.to_json() for item in items)
    elif kind == "table":
        print_rows((_row(each.to_item()) for each in items), COLUMNS, none="no requests")
    else:
        sys.stdout.flush()
        _write(items, kind, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _kind(asked: Format | None, output: Path | None, *, json: bool) -> Format:
    """The format to write; raises `InvalidInput` for what cannot be together."""
    if json and asked is not None and output is None:
        raise InvalidInput("say either --json or --format, not both", param="format")
    if asked == "parquet" and output is None:
        raise InvalidInput("Parquet is not for standard output: say --output FILE.parquet", param="output")
    if asked == "table" and output is not None:
        raise InvalidInput("a table is for a terminal: write jsonl, csv or parquet to a file", param="format")
    if asked is not None:
        return asked
    if output is not None:
        return _kind_by_name(output)
    return "table" if sys.stdout.isatty() else "jsonl"


def _kind_by_name(output: Path) -> Format:
    """The format that the file's name asks for; raises `InvalidInput` for an ending that stands for none."""
    kinds: dict[str, Format] = {
        "": "jsonl",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".csv": "csv",
        ".parquet": "parquet",
    }
    kind = kinds.get(output.suffix.lower())
    if kind is None:
        raise InvalidInput(
            f"{output.name} ends in {output.suffix}, which is no format of results; let it end in .jsonl, .csv or "
            ".parquet, or say --format",
            param="output",
        )
    return kind


def _row(item: BatchResultItem) -> Row:
    """The request's row: what became of it, and the beginning of the answer or the error."""
    custom_id, model = plain(item.custom_id), plain(item.model or "")
    state = Text(item.status, style=COLOURS.get(item.status, "cyan"))
    text = plain(" ".join((item.error or answer_text(item.response_body)).split())[:TEXT_CHARACTERS])
    return custom_id, state, text, model, item.id


def answer_text(body: object) -> str:
    """What a model said, as far as the answer's shape is known; else the whole answer."""
    match body:
        case {"choices": [{"message": {"content": str(text)}}, *_]} | {"choices": [{"text": str(text)}, *_]}:
            return text
        case {"output": [*outputs]}:
            texts = (part for each in outputs for part in _texts(each))
            return " ".join(texts)
        case {"content": [*parts]}:
            return " ".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
        case None:
            return ""
    return json_text(body)


def _texts(output: object) -> Iterable[str]:
    match output:
        case {"content": [*parts]}:
            return [str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part]
    return []


def _save(items: Iterator[Result], kind: Format, output: Path, batch_id: str, *, json: bool) -> None:
    with new_file(output) as file:
        count = _write(items, kind, file)
    if json:
        told = {"id": batch_id, "path": str(output), "format": kind, "results": count}
        print_json(msgspec.json.encode(told).decode())
    else:
        messages().print(f"wrote {count:,} results to {output}", markup=False)


def _write(items: Iterator[Result], kind: Format, file: BinaryIO) -> int:
    """Write the items a thousand at a time; how many there were."""
    if kind == "parquet":
        return _write_parquet(items, file)
    count = 0
    if kind == "csv":
        file.write(_csv(FIELDS))
    for item in items:
        count += 1
        file.write(_csv(map(_harmless, _fields(item))) if kind == "csv" else item.to_line())
    return count


def _csv(row: Iterable[str | None]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerow(row)
    return text.getvalue().encode()


def _harmless(text: str | None) -> str | None:
    """The text of a cell that no spreadsheet takes for a formula, without control characters.

    Spreadsheets run what begins with `=`, `+`, `-` or `@`; an apostrophe before it makes it a text (OWASP, CSV
    injection). Numbers stay as they are.
    """
    if not text:
        return text
    text = CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
    return f"'{text}" if text[0] in "=+-@" and not NUMBER.fullmatch(text) else text


def _fields(item: Result) -> list[str | None]:
    """The item's fields; bodies as JSON, byte for byte."""
    shown = [None if text is None else text.decode() for text in (item.input_text, item.response_text)]
    return [item.id, item.custom_id, item.model, item.status, item.error, *shown]


def _write_parquet(items: Iterator[Result], file: BinaryIO) -> int:
    import pyarrow as pa  # noqa: PLC0415 - half a second that the other formats spare
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    schema = pa.schema([(name, pa.string()) for name in FIELDS])
    count = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for block in _blocks(items):
            count += len(block)
            columns = zip(*map(_fields, block), strict=True)
            writer.write_table(pa.table([pa.array(column, pa.string()) for column in columns], schema=schema))
    return count


def _blocks(items: Iterator[Result]) -> Iterator[list[Result]]:
    """The items a thousand at a time; fewer if their bodies are long."""
    block: list[Result] = []
    size = 0
    for item in items:
        block.append(item)
        size += len(item.input_text or b"") + len(item.response_text or b"")
        if len(block) == ITEMS_AT_ONCE or size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block
