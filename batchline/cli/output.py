"""New files that a command writes, and long lists as one JSON document."""

import sys
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from batchline.models.errors import InvalidInput


def check_free(path: Path, *, force: bool = False) -> None:
    """Raise `InvalidInput` where a file is there that is not to be written over, or none can be."""
    if path.is_dir():
        raise InvalidInput(f"{path} is a folder; name a file in it", param="output")
    if path.is_file() and not force:
        raise InvalidInput(f"{path} is there already; name another file, or remove it", param="output")
    if not path.parent.is_dir():
        raise InvalidInput(f"{path} cannot be written: there is no folder {path.parent}", param="output")


@contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """Open a file that gets its name once it is whole; raises `InvalidInput` where one has that name already.

    What is no plain file, such as a pipe or /dev/stdout, is written to directly.
    """
    check_free(path, force=force)
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    partial = path.with_name(f".{path.name[:100]}.{uuid.uuid4().hex}")
    try:
        with _opened(partial, path) as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _opened(partial: Path, path: Path) -> BinaryIO:
    try:
        return partial.open("xb")
    except PermissionError as error:
        raise InvalidInput(f"{path} cannot be written: you may not write to its folder", param="output") from error


def print_list(items: Iterable[bytes], *, kind: bytes = b"", end: Iterable[bytes] = ()) -> None:
    """Write one JSON object with the items as its `data`, however many; `kind` and `end` are members around them.

    The members of `end` are asked for when the items are through.
    """
    out = sys.stdout.buffer
    sys.stdout.flush()
    out.write(b"{" + kind + b'"data":[')
    for number, item in enumerate(items):
        out.write(b"," + item if number else item)
    out.write(b"".join((b"]", *end, b"}\n")))
    out.flush()
