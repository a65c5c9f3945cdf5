"""Durable, private files and folders on the local disk, and the translation of OS errors."""

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from batchline.models.errors import NotFound, StorageFault

TEMPORARY_PREFIX: Final = ".tmp-"
"""The prefix of the names of unfinished local objects; no key may have it."""

BUFFER_BYTES: Final = 2**20
MAX_CREATION_ATTEMPTS: Final = 10
ABSENCE_ERRORS: Final = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

_TEMPORARY_NAME: Final = re.compile(re.escape(TEMPORARY_PREFIX) + r"[0-9a-f]{32}")
_CREATE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_FSYNC_UNSUPPORTED: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM})
"""Error numbers of file systems that cannot sync a folder, and of folders that we can write to but not read."""


def make_folder(folder: Path, *, private: bool) -> None:
    """Create the folder and its missing parents durably; if `private`, no other user can enter them."""
    missing: list[Path] = []
    for ancestor in (folder, *folder.parents):
        if ancestor.exists():
            break
        missing.append(ancestor)
    for ancestor in reversed(missing):
        ancestor.mkdir(mode=0o700 if private else 0o777, exist_ok=True)
        sync_folder(ancestor.parent)


def make_private_file(path: Path) -> None:
    """Create an empty file that no other user can read, and its folder, unless the path exists."""
    make_folder(path.parent, private=True)
    # Without O_EXCL, since another process may create it at the same moment.
    if not path.exists():
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def sync_folder(folder: Path) -> None:
    """Flush the folder's entries to the disk; otherwise a new name may be lost in a power failure."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _FSYNC_UNSUPPORTED:
            raise


def is_temporary(name: str) -> bool:
    """Return True for a name that `temporary_path_for` makes."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def create_file(path: Path, *, private: bool) -> BinaryIO:
    """Create a file and open it for writing."""
    # Repeated, because another process that empties the folder may remove it between the two calls.
    for attempts_left in range(MAX_CREATION_ATTEMPTS - 1, -1, -1):
        try:
            make_folder(path.parent, private=private)
            descriptor = os.open(path, _CREATE_FLAGS, 0o600 if private else 0o666)
            return os.fdopen(descriptor, "wb", buffering=BUFFER_BYTES)
        except (FileNotFoundError, FileExistsError):  # the latter if a folder is removed while it is created
            if not attempts_left:
                raise
    raise AssertionError


def temporary_path_for(path: Path) -> Path:
    """Return a new path in the same folder, to be renamed to `path` later."""
    return path.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")


def flush_durably(file: BinaryIO) -> None:
    """Flush the file's content to the disk."""
    file.flush()
    os.fsync(file.fileno())


def pread(file: BinaryIO, start: int, end: int) -> bytes:
    """Return bytes `start` to `end` (exclusive) of the file, fewer at its end."""
    blocks = []
    # A loop, because one call reads at most 2 GiB.
    while start < end:
        block = os.pread(file.fileno(), end - start, start)
        if not block:
            break
        blocks.append(block)
        start += len(block)
    return blocks[0] if len(blocks) == 1 else b"".join(blocks)


def raise_unless_missing(error: OSError) -> None:
    """Raise the error of an unreadable folder, which `os.walk` would treat as empty."""
    if not isinstance(error, ABSENCE_ERRORS):
        raise error


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn OS errors into `NotFound` or `StorageFault`."""
    with translate_write_errors(path):
        try:
            yield
        except ABSENCE_ERRORS as error:
            raise NotFound(f"there is no object at {path}") from error


@contextmanager
def translate_write_errors(path: Path) -> Iterator[None]:
    """Turn OS errors into `StorageFault`; for writes, for which `NotFound` would be misleading."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            problem = "the disk is full: nothing can be written"
        elif error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            problem = "access is refused"
        else:
            problem = f"storage failed ({error.strerror or type(error).__name__})"
        raise StorageFault(f"{problem} at {path}") from error
