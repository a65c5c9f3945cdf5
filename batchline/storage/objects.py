"""Objects by key: what a store can do, and the local directory that is one.

A writer's object appears whole or not at all. Every fault of the place itself is a `StorageFault`, a key that is
not there `NotFound`.
"""

import errno
import os
import shutil
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import msgspec

from batchline.models.errors import InvalidInput, NotFound, StorageFault
from batchline.models.settings import Settings

STREAM_BYTES: Final = 2**20
TEMPORARY: Final = ".tmp-"
"""What the names of unfinished local objects start with; no key may."""

CREATION_TRIES: Final = 10

_ABSENT: Final = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class ObjectInfo(msgspec.Struct, frozen=True):
    """An object's size and a tag that changes with its content."""

    key: str
    size_bytes: int
    version: str


class ObjectWriter(Protocol):
    """Takes the bytes of an object that is being written."""

    def write(self, data: bytes) -> None:
        """Append those bytes; raises `StorageFault`."""


class ObjectStore(ABC):
    """Objects below one root. Keys are relative paths with `/`; all methods may be called from any thread."""

    root: str

    @abstractmethod
    def info(self, key: str) -> ObjectInfo:
        """Size and version; raises `NotFound`."""

    @abstractmethod
    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (exclusive); raises `NotFound`, or `StorageFault` where there are fewer."""

    @abstractmethod
    def writer(self, key: str) -> AbstractContextManager[ObjectWriter]:
        """Write an object piece by piece: there when the block ends, not there when it raises."""

    @abstractmethod
    def put_new(self, key: str, data: bytes) -> bool:
        """Write an object unless its key is taken; whether it was written."""

    @abstractmethod
    def concat(self, keys: Sequence[str], target: str) -> int:
        """Write the objects one after another as `target`; its size in bytes."""

    @abstractmethod
    def copy(self, key: str, target: str) -> None:
        """Give `target` the object's content, in one step for a reader; raises `NotFound`."""

    @abstractmethod
    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below that directory-like prefix, those of one folder together, as they are found."""

    @abstractmethod
    def unfinished(self, *, older_than_s: float) -> list[str]:
        """What writers that died have left and no reader sees, begun so long ago; names for `discard`."""

    @abstractmethod
    def discard(self, unfinished: str) -> None:
        """Delete what `unfinished` has named."""

    @abstractmethod
    def delete(self, keys: Iterable[str]) -> None:
        """Delete those objects; ones that are not there are fine."""

    @abstractmethod
    def uri(self, key: str) -> str:
        """Where the object is, for people and other programs."""

    def find(self, prefix: str) -> list[ObjectInfo]:
        """Every object below that directory-like prefix, by key."""
        return sorted(self.walk(prefix), key=lambda info: info.key)

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        try:
            self.info(key)
        except NotFound:
            return False
        return True

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        with self.writer(key) as file:
            file.write(data)

    def stream(
        self, key: str, start: int = 0, end: int | None = None, block_bytes: int = STREAM_BYTES
    ) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive) in blocks; raises as `read` does."""
        stop = self.info(key).size_bytes if end is None else end
        for at in range(start, stop, block_bytes):
            yield self.read(key, at, min(stop, at + block_bytes))


def open_objects(settings: Settings) -> ObjectStore:
    """The store that the settings name; raises `InvalidInput` for an address of an unknown kind."""
    url = settings.storage
    if url.startswith("s3://"):
        from batchline.storage.s3 import S3Objects  # noqa: PLC0415 - half a second that a local store spares

        return S3Objects(url, settings)
    if "://" in url and not url.startswith("file://"):
        raise InvalidInput(
            f"storage_url starts with {url.partition('://')[0]}://; give a directory or s3://bucket/prefix",
            param="storage_url",
        )
    return LocalObjects(Path(url.removeprefix("file://")).expanduser().absolute())


def checked_key(key: str) -> str:
    """The key, if it stays below the root; raises `InvalidInput` otherwise."""
    parts = key.split("/")
    if any(part in {"", ".", ".."} or part.startswith(TEMPORARY) or "\0" in part for part in parts):
        raise InvalidInput(
            f"{key!r} is not a key: no empty, '.', '..' or temporary names are allowed", param="key"
        )
    return key


class LocalObjects(ObjectStore):
    """Objects as files below a directory, which is made when first written to."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._root = root

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def info(self, key: str) -> ObjectInfo:
        """Size and version; the version is made of inode, time of change and size."""
        path = self._path(key)
        with _faults(path):
            found = os.stat(path)  # noqa: PTH116 - half the time of Path.stat
        if stat.S_ISDIR(found.st_mode):
            raise NotFound(f"there is no object at {path}, it is a folder")
        return _info(key, found)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (exclusive)."""
        with _faults(self._path(key)), self._path(key).open("rb", buffering=0) as file:
            if end is None:
                end = os.fstat(file.fileno()).st_size
            data = _pread(file, start, end)
        if len(data) < end - start:
            raise StorageFault(f"{self._path(key)} ends at byte {start + len(data)}; {end} were expected")
        return data

    def stream(
        self, key: str, start: int = 0, end: int | None = None, block_bytes: int = STREAM_BYTES
    ) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive) in blocks, of the file as it is opened now."""
        path = self._path(key)
        with _faults(path), path.open("rb", buffering=0) as file:
            stop = os.fstat(file.fileno()).st_size if end is None else end
            for at in range(start, stop, block_bytes):
                data = _pread(file, at, min(stop, at + block_bytes))
                if len(data) < min(stop, at + block_bytes) - at:
                    raise StorageFault(f"{path} ends at byte {at + len(data)}; {stop} were expected")
                yield data

    @contextmanager
    def writer(self, key: str) -> Iterator[ObjectWriter]:
        """Write a file beside its place and move it there, durable, when it is whole."""
        path = self._path(key)
        with self._replacing(path) as file:
            yield _LocalWriter(file, path)

    def put_new(self, key: str, data: bytes) -> bool:
        """Link a written file to its name, which fails where the name is taken."""
        path = self._path(key)
        temporary = _temporary_beside(path)
        with _write_faults(path), _created(temporary) as file:
            try:
                file.write(data)
                _flush_durably(file)
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
        return True

    def concat(self, keys: Sequence[str], target: str) -> int:
        """Copy the files into one."""
        path = self._path(target)
        with self._replacing(path) as file:
            for key in keys:
                with _faults(self._path(key)), self._path(key).open("rb") as part:
                    shutil.copyfileobj(part, _LocalWriter(file, path), STREAM_BYTES)
            return file.tell()

    def copy(self, key: str, target: str) -> None:
        """Link the file to the other name as well, or copy it where the disk has no such links."""
        source, path = self._path(key), self._path(target)
        temporary = _temporary_beside(path)
        with _faults(source):
            source.stat()
        with _write_faults(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, temporary)
            except OSError:
                self.concat([key], target)
                return
            os.replace(temporary, path)  # noqa: PTH105 - as above
            temporary.unlink(missing_ok=True)  # which a link to the same file, replaced by itself, leaves there

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every file below that directory, those of one folder together."""
        for path in self._files_below(prefix):
            if not path.name.startswith(TEMPORARY):
                yield from self._found(path)

    def _files_below(self, prefix: str) -> Iterator[Path]:
        top = self._path(prefix.rstrip("/")) if prefix.strip("/") else self._root
        with _faults(top):
            for folder, folders, names in os.walk(top, onerror=_raise_but_for_absence):
                folders.sort()
                yield from (Path(folder, name) for name in sorted(names))

    def unfinished(self, *, older_than_s: float) -> list[str]:
        """Temporary files that have not been written to for so long."""
        limit = time.time() - older_than_s
        found = [path for path in self._files_below("") if path.name.startswith(TEMPORARY)]
        return [str(path) for path in found if _changed_at(path) < limit]

    def discard(self, unfinished: str) -> None:
        """Delete that temporary file."""
        with _write_faults(Path(unfinished)):
            Path(unfinished).unlink(missing_ok=True)

    def _found(self, path: Path) -> list[ObjectInfo]:
        try:
            return [_info(path.relative_to(self._root).as_posix(), path.stat())]
        except FileNotFoundError:  # deleted since its directory was read
            return []

    def delete(self, keys: Iterable[str]) -> None:
        """Delete those files, and the directories that this empties."""
        for key in keys:
            path = self._path(key)
            with suppress(NotFound), _faults(path):
                path.unlink()
                self._drop_empty(path.parent)

    def _drop_empty(self, folder: Path) -> None:
        while folder != self._root and self._root in folder.parents:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def uri(self, key: str) -> str:
        """The file's path."""
        return str(self._path(key))

    @contextmanager
    def _replacing(self, path: Path) -> Iterator[BinaryIO]:
        """A new file that takes the path's place when the block ends."""
        temporary = _temporary_beside(path)
        with _write_faults(path):
            file = _created(temporary)
        try:
            yield file
            with _write_faults(path):
                _flush_durably(file)
                file.close()
                os.replace(temporary, path)  # noqa: PTH105 - as above
        except BaseException:
            _close_quietly(file)
            temporary.unlink(missing_ok=True)
            raise


class _LocalWriter:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def write(self, data: bytes) -> None:
        with _write_faults(self._path):
            self._file.write(data)


def _created(path: Path) -> BinaryIO:
    """The new file opened for writing; its directory may vanish in between when another empties it."""
    for left in range(CREATION_TRIES - 1, -1, -1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb", buffering=STREAM_BYTES)
        except (FileNotFoundError, FileExistsError):  # the latter from `mkdir`, which looks twice
            if not left:
                raise
    raise AssertionError


def _close_quietly(file: BinaryIO) -> None:
    try:
        file.close()
    except OSError:
        return


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")


def _flush_durably(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _pread(file: BinaryIO, start: int, end: int) -> bytes:
    pieces = []
    while start < end:
        piece = os.pread(file.fileno(), end - start, start)
        if not piece:
            break
        pieces.append(piece)
        start += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}")


def _changed_at(path: Path) -> float:
    """When the file was last written to, in Unix seconds; now where it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return time.time()


def _raise_but_for_absence(error: OSError) -> None:
    """Let a listing fail where a folder cannot be read, which `os.walk` would take for an empty one."""
    if not isinstance(error, _ABSENT):
        raise error


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Turn the system's errors into ours."""
    with _write_faults(path):
        try:
            yield
        except _ABSENT as error:
            raise NotFound(f"there is no object at {path}") from error


@contextmanager
def _write_faults(path: Path) -> Iterator[None]:
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
