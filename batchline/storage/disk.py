"""Files of the local disk: made so that they last and that no one else can read them, and faults in our words."""

import errno
import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from batchline.models.errors import NotFound, StorageFault

TEMPORARY: Final = ".tmp-"
"""The prefix of the names of unfinished local objects; no key may have it."""

BUFFER_BYTES: Final = 2**20
CREATION_TRIES: Final = 10
ABSENT: Final = (FileNotFoundError, IsADirectoryError, NotADirectoryError)

_TEMPORARY_NAME: Final = re.compile(re.escape(TEMPORARY) + r"[0-9a-f]{32}")
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_UNSYNCED: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM})
"""Of file systems that cannot sync a folder, and of folders that we may write to and not read."""


def make_folder(folder: Path, *, private: bool) -> None:
    """Make the folder and those above it that are missing, durably; if `private`, no other user can enter them."""
    missing: list[Path] = []
    for each in (folder, *folder.parents):
        if each.exists():
            break
        missing.append(each)
    for each in reversed(missing):
        each.mkdir(mode=0o700 if private else 0o777, exist_ok=True)
        sync_folder(each.parent)


def make_private_file(path: Path) -> None:
    """Make an empty file that no other user can read, unless something is there; its folder as well."""
    make_folder(path.parent, private=True)
    if not path.exists():
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def sync_folder(folder: Path) -> None:
    """Write the folder's entries to the disk: without, a name that was given may be gone after a power failure."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _UNSYNCED:
            raise


def is_temporary(name: str) -> bool:
    """True for a name that `temporary_beside` gives."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def created(path: Path, *, private: bool) -> BinaryIO:
    """The new file opened for writing; its directory may vanish in between when another empties it."""
    for left in range(CREATION_TRIES - 1, -1, -1):
        try:
            make_folder(path.parent, private=private)
            descriptor = os.open(path, _NEW, 0o600 if private else 0o666)
            return os.fdopen(descriptor, "wb", buffering=BUFFER_BYTES)
        except (FileNotFoundError, FileExistsError):  # the latter if a folder vanishes while it is made
            if not left:
                raise
    raise AssertionError


def close_quietly(file: BinaryIO) -> None:
    """Close a file that is given up."""
    try:
        file.close()
    except OSError:
        return


def temporary_beside(path: Path) -> Path:
    """A new name in the same folder for what is to become the path."""
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")


def flush_durably(file: BinaryIO) -> None:
    """Write the file's content to the disk."""
    file.flush()
    os.fsync(file.fileno())


def pread(file: BinaryIO, start: int, end: int) -> bytes:
    """Bytes `start` to `end` (exclusive) of the file, fewer at its end."""
    pieces = []
    while start < end:
        piece = os.pread(file.fileno(), end - start, start)
        if not piece:
            break
        pieces.append(piece)
        start += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def changed_at(path: Path) -> float:
    """When the file was last written to, in Unix seconds; now where it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def raise_but_for_absence(error: OSError) -> None:
    """Let a listing fail where a folder cannot be read, which `os.walk` would take for an empty one."""
    if not isinstance(error, ABSENT):
        raise error


@contextmanager
def faults(path: Path) -> Iterator[None]:
    """Turn the system's errors into ours."""
    with write_faults(path):
        try:
            yield
        except ABSENT as error:
            raise NotFound(f"there is no object at {path}") from error


@contextmanager
def write_faults(path: Path) -> Iterator[None]:
    """Turn the system's errors into ours where an object is made, so that none is looked for."""
    try:
        yield
    except OSError as error:
        raise StorageFault(f"{_reason(error)} at {path}") from error


def _reason(error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "the disk is full: nothing can be written"
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return "access is refused"
    return f"storage failed ({error.strerror or type(error).__name__})"
