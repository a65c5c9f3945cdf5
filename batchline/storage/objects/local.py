"""The object store on the local disk."""

import os
import shutil
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from batchline.models.errors import NotFound, StorageFault
from batchline.storage.objects import layout
from batchline.storage.objects.disk import (
    TEMPORARY_PREFIX,
    create_file,
    flush_durably,
    is_temporary,
    make_folder,
    pread,
    raise_unless_missing,
    sync_folder,
    temporary_path_for,
    translate_os_errors,
    translate_write_errors,
)
from batchline.storage.objects.store import STREAM_BLOCK_BYTES, ObjectInfo, ObjectStore, ObjectWriter, validate_key


class LocalObjectStore(ObjectStore):
    """Objects as files below a directory, which the first write creates.

    If `private`, no other user of the machine can read them.
    """

    def __init__(self, root: Path, *, private: bool = True) -> None:
        self.root = str(root)
        self._root = root
        self._private = private

    def _path_of(self, key: str) -> Path:
        return self._root / validate_key(key)

    def info(self, key: str) -> ObjectInfo:
        """Return size and version; the version consists of inode, modification time and size."""
        path = self._path_of(key)
        with translate_os_errors(path):
            status = os.stat(path)  # noqa: PTH116 - half the time of Path.stat
        if stat.S_ISDIR(status.st_mode):
            raise NotFound(f"there is no object at {path}: it is a folder")
        return _to_object_info(key, status)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        """Return bytes `start` to `end` (exclusive)."""
        return b"".join(self.stream(key, start, end, block_bytes=sys.maxsize))

    def stream(
        self, key: str, start: int = 0, end: int | None = None, block_bytes: int = STREAM_BLOCK_BYTES
    ) -> Iterator[bytes]:
        """Yield bytes `start` to `end` (exclusive) in blocks, even if the object is replaced meanwhile."""
        path = self._path_of(key)
        with translate_os_errors(path), path.open("rb", buffering=0) as file:
            stop = os.fstat(file.fileno()).st_size if end is None else end
            for offset in range(start, stop, block_bytes):
                data = pread(file, offset, min(stop, offset + block_bytes))
                if len(data) < min(stop, offset + block_bytes) - offset:
                    raise StorageFault(f"{path} ends at byte {offset + len(data)}; {stop} were expected")
                yield data

    @contextmanager
    def writer(self, key: str) -> Iterator[ObjectWriter]:
        """Write a temporary file in the same folder, and rename it when it is complete and durable."""
        path = self._path_of(key)
        with self._open_replacement(path) as file:
            yield _LocalWriter(file, path)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write a temporary file and link it to the key's path."""
        path = self._path_of(key)
        temporary_path = temporary_path_for(path)
        with translate_write_errors(path), create_file(temporary_path, private=self._private) as file:
            try:
                file.write(data)
                flush_durably(file)
                # Unlike a rename, a link fails if the name exists, and it is atomic.
                os.link(temporary_path, path)
                sync_folder(path.parent)
            except FileExistsError:
                return False
            finally:
                temporary_path.unlink(missing_ok=True)
        return True

    def concat(self, keys: Sequence[str], target: str) -> int:
        """Copy the files into one, and return its size in bytes."""
        path = self._path_of(target)
        with self._open_replacement(path) as file:
            for key in keys:
                with translate_os_errors(self._path_of(key)), self._path_of(key).open("rb") as source_file:
                    # Through the writer, so that a full disk is not reported as an error of the source.
                    shutil.copyfileobj(source_file, _LocalWriter(file, path), STREAM_BLOCK_BYTES)
            return file.tell()

    def copy(self, key: str, target: str) -> None:
        """Create a hard link to the file, or a copy if the file system has no hard links."""
        source_path, target_path = self._path_of(key), self._path_of(target)
        temporary_path = temporary_path_for(target_path)
        with translate_os_errors(source_path):
            source_path.stat()
        with translate_write_errors(target_path):
            make_folder(target_path.parent, private=self._private)
            try:
                os.link(source_path, temporary_path)
            except OSError:
                self.concat([key], target)
                return
            os.replace(temporary_path, target_path)  # noqa: PTH105 - as above
            sync_folder(target_path.parent)
            # rename(2) does nothing if both names link to the same file, and leaves the temporary one.
            temporary_path.unlink(missing_ok=True)

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        """Yield every file below that directory, grouped by folder."""
        for path in self._files_below(prefix):
            if not path.name.startswith(TEMPORARY_PREFIX):
                with suppress(FileNotFoundError):  # deleted since its directory was read
                    yield _to_object_info(path.relative_to(self._root).as_posix(), path.stat())

    def _files_below(self, prefix: str) -> Iterator[Path]:
        top = self._path_of(prefix.rstrip("/")) if prefix.strip("/") else self._root
        with translate_os_errors(top):
            for folder, folders, names in os.walk(top, onerror=raise_unless_missing):
                folders.sort()
                yield from (Path(folder, name) for name in sorted(names))

    def incomplete_uploads(self, *, older_than_s: float) -> list[str]:
        """Return the paths of temporary files that were not written to for `older_than_s`."""
        modified_before = time.time() - older_than_s
        uploads: list[str] = []
        for path in self._files_below(""):
            if is_temporary(path.name) and layout.is_own_key(path.relative_to(self._root).as_posix()):
                with suppress(OSError):  # deleted since its directory was read
                    uploads += [str(path)] if path.stat().st_mtime < modified_before else []
        return uploads

    def abort_upload(self, upload: str) -> None:
        """Delete the temporary file."""
        with translate_write_errors(Path(upload)):
            Path(upload).unlink(missing_ok=True)

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the files, and the folders that become empty."""
        for key in keys:
            path = self._path_of(key)
            with suppress(NotFound), translate_os_errors(path):
                path.unlink()
                with suppress(OSError):  # `rmdir` fails for a folder that is not empty, which ends the loop
                    for folder in path.parents[: len(Path(key).parts) - 1]:
                        folder.rmdir()

    def uri(self, key: str) -> str:
        """Return the file's path."""
        return str(self._path_of(key))

    @contextmanager
    def _open_replacement(self, path: Path) -> Iterator[BinaryIO]:
        """Open a new file that replaces `path` when the context ends."""
        temporary_path = temporary_path_for(path)
        with translate_write_errors(path):
            file = create_file(temporary_path, private=self._private)
        try:
            yield file
            with translate_write_errors(path):
                # In this order: after a power failure the name must not lead to missing content.
                flush_durably(file)
                file.close()
                os.replace(temporary_path, path)  # noqa: PTH105 - as above
                sync_folder(path.parent)
        except BaseException:
            with suppress(OSError):
                file.close()
            temporary_path.unlink(missing_ok=True)
            raise


class _LocalWriter:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def write(self, data: bytes) -> None:
        with translate_write_errors(self._path):
            self._file.write(data)


def _to_object_info(key: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(key, status.st_size, f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}")
