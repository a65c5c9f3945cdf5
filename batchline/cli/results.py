"""`batchline batches results`: what became of each request."""

import csv
import io
import json as jsonlib
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from cyclopts import Parameter

from batchline.cli.console import messages
from batchline.cli.tables import print_table, result_table
from batchline.models.batches import BatchResultItem
from batchline.models.errors import InvalidInput
from batchline.operations import Batchline

Format = Literal["table", "jsonl", "csv", "parquet"]
COLUMNS = ("id", "custom_id", "model", "status", "error", "input_body", "response_body")
ROWS_AT_ONCE = 1_000
SHOWN = 100


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
) -> None:
    """Print what became of each request, in input order; works while the batch runs.

    Parameters
    ----------
    batch_id:
        Id of the batch.
    skip:
        Leave out so many first.
    limit:
        At most so many; 100 as a table, all otherwise.
    search:
        Only requests with that in their custom_id; case does not matter.
    status:
        Only requests that are in this state.
    format:
        table, jsonl, csv or parquet; by the output's name, else a table on a terminal and jsonl elsewhere.
    output:
        Write to this new file; Parquet needs one.
    """
    kind = format or _kind_of(output)
    if kind == "parquet" and output is None:
        raise InvalidInput(
            "Parquet is not for a terminal: say where to with --output FILE.parquet", param="output"
        )
    if kind == "table" and limit is None:
        limit = SHOWN
    items = Batchline(source="cli").batches.results(batch_id, skip=skip, limit=limit, search=search, status=status)
    if kind == "table":
        print_table(result_table(items), none="no requests")
    elif output is None:
        sys.stdout.flush()
        _write(items, kind, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    else:
        with output.open("xb") as file:
            count = _write(items, kind, file)
        messages().print(f"wrote {count:,} results to {output}", markup=False)


def _kind_of(output: Path | None) -> Format:
    if output is not None:
        kinds: dict[str, Format] = {".csv": "csv", ".parquet": "parquet"}
        return kinds.get(output.suffix.lower(), "jsonl")
    return "table" if sys.stdout.isatty() else "jsonl"


def _write(items: Iterator[BatchResultItem], kind: Format, file: BinaryIO) -> int:
    """Write the items a thousand at a time; how many there were."""
    if kind == "parquet":
        return _write_parquet(items, file)
    count = 0
    if kind == "csv":
        file.write(_csv([COLUMNS]))
    while block := list(islice(items, ROWS_AT_ONCE)):
        count += len(block)
        file.write(_csv(map(_row, block)) if kind == "csv" else b"".join(map(_json_line, block)))
    return count


def _json_line(item: BatchResultItem) -> bytes:
    return item.model_dump_json().encode() + b"\n"


def _csv(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _row(item: BatchResultItem) -> list[Any]:
    """The item's columns; bodies as JSON."""
    bodies = (item.input_body, item.response_body)
    shown = [None if body is None else jsonlib.dumps(body, ensure_ascii=False) for body in bodies]
    return [item.id, item.custom_id, item.model, item.status, item.error, *shown]


def _write_parquet(items: Iterator[BatchResultItem], file: BinaryIO) -> int:
    import pyarrow as pa  # noqa: PLC0415 - half a second that the other formats spare
    import pyarrow.parquet as pq  # noqa: PLC0415 - as above

    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    count = 0
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        while block := list(islice(items, ROWS_AT_ONCE)):
            count += len(block)
            columns = zip(*map(_row, block), strict=True)
            writer.write_table(pa.table([pa.array(column, pa.string()) for column in columns], schema=schema))
    return count
