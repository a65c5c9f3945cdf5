"""Write new files, and long lists as one JSON document."""

import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from batchline.models.errors import InvalidInput


def require_not_exists(path: Path, *, force: bool = False) -> None:
    """Raise `InvalidInput` if the file exists and `force` is not set, or cannot be created."""
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder; give a file in it", param="output")
    if path.is_file() and not force:
        raise InvalidInput(f"{path} exists; give another file, or remove it", param="output")
    if not path.parent.is_dir():
        raise InvalidInput(f"{path} cannot be written: there is no folder {path.parent}", param="output")


@contextmanager
def open_new_file(path: Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """Open a file that gets its name once it is complete; raises `InvalidInput` if that name exists.

    A path that is not a regular file, such as a pipe or /dev/stdout, is written directly.
    """
    require_not_exists(path, force=force)
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    partial_path = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}")
    try:
        partial_file = partial_path.open("xb")
    except PermissionError as error:
        raise InvalidInput(f"{path} cannot be written: its folder is not writable", param="output") from error
    try:
        with partial_file as file:
            yield file
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


def print_json_list(items: Iterable[bytes], *, head: bytes = b"", tail: Iterable[bytes] = ()) -> None:
    """Write a JSON object with the items as `data`, between the members `head` and `tail`.

    `tail` is iterated after the items.
    """
    stream = sys.stdout.buffer
    sys.stdout.flush()
    stream.write(b"{" + head + b'"data":[')
    for number, item in enumerate(items):
        stream.write(b"," + item if number else item)
    stream.write(b"".join((b"]", *tail, b"}\n")))
    stream.flush()
