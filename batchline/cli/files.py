"""`batchline files`: the files on storage."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import cyclopts
from cyclopts import Parameter

from batchline.cli.console import messages, print_json, results
from batchline.cli.tables import file_table, print_table
from batchline.models.batches import window_seconds
from batchline.models.files import FilePurpose
from batchline.operations import Batchline

Flag = Annotated[bool, Parameter(negative="", show_default=False)]

app = cyclopts.App(name="files", help="Upload, list, read and delete files.", help_format="plaintext")


@app.command
def upload(file: str, /, *, expires_after: str | None = None, json: Flag = False) -> None:
    """Store an input file and print its id.

    Parameters
    ----------
    file:
        A path, or an s3:// address below an allowed root; plain, .gz or .zst.
    expires_after:
        How long to keep it, such as 12h or 30d; for ever where absent.
    json:
        Print the file as JSON.
    """
    kept_s = None if expires_after is None else window_seconds(expires_after)
    stored = Batchline(source="cli").files.create(file=file, expires_after=kept_s)
    if json:
        print_json(stored.model_dump_json())
    else:
        results().print(stored.id)
        messages().print(f"{stored.filename}, {stored.bytes:,} bytes", markup=False)


@app.command(name="list")
def list_(
    *,
    purpose: FilePurpose | None = None,
    search: str | None = None,
    limit: int = 20,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
    json: Flag = False,
) -> None:
    """List files, newest first.

    Parameters
    ----------
    purpose:
        Only files of that purpose.
    search:
        Only files with that in their name.
    limit:
        At most so many.
    after:
        Only files behind the one of that id.
    order:
        desc is newest first.
    json:
        Print `{"object": "list", "data": […], "has_more": …}`.
    """
    page = Batchline(source="cli").files.list(
        purpose=purpose, search=search, limit=limit, after=after, order=order
    )
    if json:
        print_json(page.to_json())
        return
    print_table(file_table(page.data), none="no files")
    if page.has_more:
        messages().print(f"there are more: --after {page.last_id}", markup=False)


@app.command
def show(file_id: str, /, *, json: Flag = False) -> None:
    """Show a file's record.

    Parameters
    ----------
    file_id:
        Id of the file.
    json:
        Print it as JSON.
    """
    file = Batchline(source="cli").files.retrieve(file_id)
    if json:
        print_json(file.model_dump_json())
    else:
        print_table(file_table([file]), none="")


@app.command
def content(file_id: str, /, *, output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None) -> None:
    """Write a file's content to standard output, or to a new file.

    Parameters
    ----------
    file_id:
        Id of the file; a running batch's output and error files hold what is settled so far.
    output:
        Where to write it to; there must be nothing there.
    """
    blocks = Batchline(source="cli").files.content(file_id)
    if output is None:
        sys.stdout.flush()
        for block in blocks:
            sys.stdout.buffer.write(block)
        sys.stdout.buffer.flush()
        return
    with output.open("xb") as file:
        file.writelines(blocks)
    messages().print(f"wrote {output}", markup=False)


@app.command
def delete(file_id: str, /) -> None:
    """Delete a file; one that a batch needs that is not over is refused.

    Parameters
    ----------
    file_id:
        Id of the file.
    """
    Batchline(source="cli").files.delete(file_id)
    messages().print(f"deleted {file_id}", markup=False)
