"""Objects by key: what a store can do, and the local directory that is one.

A writer's object appears whole or not at all. Every fault of the place itself is a `StorageFault`, a key that is
not there `NotFound`.
"""

import os
import shutil
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import msgspec

from batchline.models.errors import InvalidInput, NotFound, StorageFault
from batchline.models.settings import Settings
from batchline.storage import layout
from batchline.storage.disk import (
    TEMPORARY,
    changed_at,
    close_quietly,
    created,
    faults,
    flush_durably,
    is_temporary,
    make_folder,
    pread,
    raise_but_for_absence,
    sync_folder,
    temporary_beside,
    write_faults,
)

STREAM_BYTES: Final = 2**20


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
        """Return the names, for `discard`, of objects that our dead writers left unfinished and began so long ago.

        Only below the folders of files and batches: the rest of the place may be used by other programs.
        """

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
    """Objects as files below a directory, which is made when first written to.

    If they are `private`, no other user of the machine can read them.
    """

    def __init__(self, root: Path, *, private: bool = True) -> None:
        self.root = str(root)
        self._root = root
        self._private = private

    def _path(self, key: str) -> Path:
        return self._root / checked_key(key)

    def info(self, key: str) -> ObjectInfo:
        """Size and version; the version is made of inode, time of change and size."""
        path = self._path(key)
        with faults(path):
            found = os.stat(path)  # noqa: PTH116 - half the time of Path.stat
        if stat.S_ISDIR(found.st_mode):
            raise NotFound(f"there is no object at {path}, it is a folder")
        return _info(key, found)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes `start` to `end` (exclusive)."""
        with faults(self._path(key)), self._path(key).open("rb", buffering=0) as file:
            if end is None:
                end = os.fstat(file.fileno()).st_size
            data = pread(file, start, end)
        if len(data) < end - start:
            raise StorageFault(f"{self._path(key)} ends at byte {start + len(data)}; {end} were expected")
        return data

    def stream(
        self, key: str, start: int = 0, end: int | None = None, block_bytes: int = STREAM_BYTES
    ) -> Iterator[bytes]:
        """Bytes `start` to `end` (exclusive) in blocks, of the file as it is opened now."""
        path = self._path(key)
        with faults(path), path.open("rb", buffering=0) as file:
            stop = os.fstat(file.fileno()).st_size if end is None else end
            for at in range(start, stop, block_bytes):
                data = pread(file, at, min(stop, at + block_bytes))
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
        temporary = temporary_beside(path)
        with write_faults(path), created(temporary, private=self._private) as file:
            try:
                file.write(data)
                flush_durably(file)
                os.link(temporary, path)
                sync_folder(path.parent)
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
                with faults(self._path(key)), self._path(key).open("rb") as part:
                    shutil.copyfileobj(part, _LocalWriter(file, path), STREAM_BYTES)
            return file.tell()

    def copy(self, key: str, target: str) -> None:
        """Link the file to the other name as well, or copy it where the disk has no such links."""
        source, path = self._path(key), self._path(target)
        temporary = temporary_beside(path)
        with faults(source):
            source.stat()
        with write_faults(path):
            make_folder(path.parent, private=self._private)
            try:
                os.link(source, temporary)
            except OSError:
                self.concat([key], target)
                return
            os.replace(temporary, path)  # noqa: PTH105 - as above
            sync_folder(path.parent)
            temporary.unlink(missing_ok=True)  # which a link to the same file, replaced by itself, leaves there

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every file below that directory, those of one folder together."""
        for path in self._files_below(prefix):
            if not path.name.startswith(TEMPORARY):
                yield from self._found(path)

    def _files_below(self, prefix: str) -> Iterator[Path]:
        top = self._path(prefix.rstrip("/")) if prefix.strip("/") else self._root
        with faults(top):
            for folder, folders, names in os.walk(top, onerror=raise_but_for_absence):
                folders.sort()
                yield from (Path(folder, name) for name in sorted(names))

    def unfinished(self, *, older_than_s: float) -> list[str]:
        """Temporary files that have not been written to for so long."""
        limit = time.time() - older_than_s
        found = [path for path in self._files_below("") if self._is_temporary(path)]
        return [str(path) for path in found if changed_at(path) < limit]

    def _is_temporary(self, path: Path) -> bool:
        """True for the name of a temporary file as we give it, where we write."""
        return is_temporary(path.name) and layout.is_ours(path.relative_to(self._root).as_posix())

    def discard(self, unfinished: str) -> None:
        """Delete that temporary file."""
        with write_faults(Path(unfinished)):
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
            with suppress(NotFound), faults(path):
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
        temporary = temporary_beside(path)
        with write_faults(path):
            file = created(temporary, private=self._private)
        try:
            yield file
            with write_faults(path):
                flush_durably(file)
                file.close()
                os.replace(temporary, path)  # noqa: PTH105 - as above
                sync_folder(path.parent)
        except BaseException:
            close_quietly(file)
            temporary.unlink(missing_ok=True)
            raise


class _LocalWriter:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def write(self, data: bytes) -> None:
        with write_faults(self._path):
            self._file.write(data)


def _info(key: str, found: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, found.st_size, f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}")
