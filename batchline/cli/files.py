"""`batchline files`: stored files."""

import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

from batchline.cli.console import print_json, print_object
from batchline.cli.options import AllFlag, FileId, JsonFlag, LimitOption, parse_seconds
from batchline.cli.output_files import open_new_file, require_not_exists
from batchline.cli.paging import page_size, print_more_hint, print_page, select_items
from batchline.cli.progress import Progress
from batchline.cli.tables import Column, Row, plain, print_rows
from batchline.client import Batchline
from batchline.models.addresses import byte_range
from batchline.models.errors import InvalidInput
from batchline.models.files import FileObject, FilePurpose
from batchline.models.formatting import format_age

COLUMNS = (
    Column("file"),
    Column("name", least=16),
    Column("bytes", right=True),
    Column("age", right=True),
    Column("expires"),
    Column("purpose"),
)

app = cyclopts.App(name="files", help="Upload, list, read and delete files.", help_format="plaintext")


@app.command
def upload(file: str, /, *, expires_after: str | None = None, json: JsonFlag = False) -> None:
    """Store an input file and print its id.

    Parameters
    ----------
    file:
        A path, or an s3:// or file:// URI below an allowed root; plain, .gz or .zst.
    expires_after:
        Lifetime of the file, such as 12h or 30d; by default it is kept.
    """
    lifetime_s = parse_seconds("expires-after", expires_after)
    client = Batchline(origin="cli")
    with Progress() as progress:
        progress.doing(f"reading {file}")
        uploaded = client.files.create(file=file, expires_after=lifetime_s)
    command = f"batchline batches create {uploaded.id}"
    note = f"{uploaded.filename}, {uploaded.bytes:,} bytes; to create a batch: {command}"
    print_object(uploaded, json=json, result=uploaded.id, note=note)


@app.command(name="list")
def list_(
    *,
    purpose: FilePurpose | None = None,
    search: str | None = None,
    limit: LimitOption = None,
    after: str | None = None,
    all_: AllFlag = False,
    order: Literal["asc", "desc"] = "desc",
    json: JsonFlag = False,
) -> None:
    """List files, newest first.

    Parameters
    ----------
    purpose:
        Only files with this purpose.
    search:
        Only files with this text in their name, ignoring case.
    after:
        Only files listed after the one with this id.
    order:
        desc lists the newest first.
    """
    page = Batchline(origin="cli").files.list(
        purpose=purpose, search=search, limit=page_size(limit, all_=all_), after=after, order=order
    )
    if json:
        print_page(page, all_=all_, convert=lambda file: file)
        return
    print_rows(_file_rows(select_items(page, all_=all_)), COLUMNS, none="no files")
    print_more_hint(page, all_=all_)


@app.command
def show(file_id: FileId, /, *, json: JsonFlag = False) -> None:
    """Show a file: its name, size, age and when it expires."""
    file = Batchline(origin="cli").files.retrieve(file_id)
    if json:
        print_json(file)
    else:
        print_rows(_file_rows([file]), COLUMNS, none="")


@app.command
def content(
    file_id: str,
    /,
    *,
    range_: Annotated[str | None, Parameter(name="--range")] = None,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    json: JsonFlag = False,
) -> None:
    """Write a file's content to standard output, or to a new file.

    Parameters
    ----------
    file_id:
        Id of the file; output and error files of a running batch hold the results so far.
    range_:
        Only these bytes, counted from 0: 0-99 are the first hundred, 100- all but those, -100 the last hundred.
    output:
        Write to this file, which must not exist.
    """
    if json and output is None:
        raise InvalidInput("the content itself goes to standard output: add --output FILE to --json", param="json")
    files = Batchline(origin="cli").files
    start, end = _parse_range(range_, files.retrieve(file_id))
    blocks = files.content(file_id, start=start, end=end)
    if output is None:
        sys.stdout.flush()
        sys.stdout.buffer.writelines(blocks)
        sys.stdout.buffer.flush()
        return
    require_not_exists(output)
    with open_new_file(output) as file:
        size_bytes = sum(map(file.write, blocks))
    written = {"id": file_id, "path": str(output), "bytes": size_bytes}
    print_object(written, json=json, note=f"wrote {size_bytes:,} bytes to {output}")


@app.command
def delete(file_id: FileId, /, *, json: JsonFlag = False) -> None:
    """Delete a file, unless an active batch needs it."""
    Batchline(origin="cli").files.delete(file_id)
    print_deleted("file", file_id, json=json)


def print_deleted(kind: str, deleted_id: str, *, json: bool) -> None:
    """Report the deletion, as OpenAI's API does or in words."""
    print_object({"id": deleted_id, "object": kind, "deleted": True}, json=json, note=f"deleted {deleted_id}")


def _parse_range(value: str | None, file: FileObject) -> tuple[int, int | None]:
    """Return start and end (exclusive) of the requested bytes."""
    if value is None:
        return 0, None
    found = byte_range(value, file.bytes)
    if found is None:
        raise InvalidInput(f"--range is {value!r}; write it as 0-99, 100- or -100", param="range")
    if value.startswith("-") and file.status != "processed":
        raise InvalidInput(
            f"file {file.id} is still growing; give a range from its start, such as 0-99", param="range"
        )
    return found


def _file_rows(files: Iterable[FileObject]) -> Iterator[Row]:
    """Yield a row for each file."""
    now = time.time()
    for file in files:
        expires = ""  # never
        if file.expires_at is not None:
            expires = f"in {format_age(file.expires_at - now)}" if file.expires_at > now else "now"
        age = format_age(now - file.created_at)
        yield file.id, plain(file.filename), f"{file.bytes:,}", age, expires, file.purpose
