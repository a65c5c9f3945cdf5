"""Implements watched folders on a local disk. A version is an inode, a size and a modification time."""

import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from batchline.models.errors import Conflict, NotFound, SourceFault
from batchline.storage.objects.disk import is_temporary, sync_folder, temporary_path_for
from batchline.storage.objects.local import LocalObjectStore
from batchline.storage.objects.readers import Readable
from batchline.storage.objects.store import STREAM_BLOCK_BYTES
from batchline.sync.folder import WatchedFile, WatchedFolder, matches_pattern, translate_storage_faults

# Follow no symbolic link, and do not block on a pipe.
_OPEN_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

ASIDE_S: Final = 60.0
"""Seconds after which a file that was moved aside counts as abandoned; normally it takes a moment."""


class LocalWatchedFolder(WatchedFolder):
    """A folder on this machine; links in it are ignored."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = LocalObjectStore(folder.parent, private=False)
        self.uri = str(folder)
        self.parent_uri = str(folder.parent)

    def list_files(self, pattern: str) -> Iterator[WatchedFile]:
        """Yield the regular files; `changed_at` is the ctime, which also changes on a rename or a chmod."""
        with _translate_os_errors(self._folder):
            names = set(os.listdir(self._folder))  # noqa: PTH208 - the folder may hold a hundred thousand files
            names.update(self._put_back_abandoned(filter(is_temporary, names)))
        for name in sorted(name for name in names if matches_pattern(name, pattern)):
            # The file may have disappeared since it was listed.
            with suppress(FileNotFoundError), _translate_errors_but_missing(self._folder / name):
                status = os.lstat(self._folder / name)
                if stat.S_ISREG(status.st_mode):
                    yield WatchedFile(name, status.st_size, _version_of(status), status.st_ctime)

    @contextmanager
    def open_version(self, file: WatchedFile) -> Iterator[Readable]:
        """Open the file; its version is checked before and after the block."""
        path = self._folder / file.name
        with _translate_os_errors(path):
            raw = os.fdopen(os.open(path, _OPEN_FLAGS), "rb")
        with raw:
            self._require_unchanged(file, os.fstat(raw.fileno()))
            yield _LocalReader(raw, path)
            with _translate_os_errors(path):
                # The path too: another file may have been renamed over it.
                self._require_unchanged(file, os.fstat(raw.fileno()), path.lstat())

    def _require_unchanged(self, file: WatchedFile, *statuses: os.stat_result) -> None:
        if any(not stat.S_ISREG(status.st_mode) or _version_of(status) != file.version for status in statuses):
            raise Conflict(f"{self.uri_of(file.name)} has changed since it was listed")

    def is_free(self, sibling: str, name: str, file: WatchedFile) -> bool:
        """Return True if the folder has no file of the name, or the listed version of the file."""
        path = self._sibling_path(sibling, name)
        with _translate_os_errors(path):
            return self._current_version(path) in {None, file.version}

    def move_to_sibling(self, file: WatchedFile, sibling: str, name: str) -> bool:
        """Link the file to its new name, check the version of the link, and delete the old name."""
        path, target = self._folder / file.name, self._sibling_path(sibling, name)
        with _translate_os_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target, follow_symlinks=False)
            except FileNotFoundError:
                return False
            except FileExistsError:  # fine if an earlier pass was killed after the link
                if self._current_version(target) != file.version:
                    raise
            except OSError:  # another disk, or one without such links
                return self._copy_and_delete(file, f"{sibling}/{name}")
            # Checked after the link: a check before it could miss a file that was replaced in between.
            if self._current_version(target) != file.version:
                target.unlink(missing_ok=True)
                return False
            sync_folder(target.parent)  # persist the new name before the old one is deleted
        self.delete(file)
        return True

    def _copy_and_delete(self, file: WatchedFile, key: str) -> bool:
        try:
            with self.open_version(file) as source, translate_storage_faults(), self._store.writer(key) as copy:
                while block := source.read(STREAM_BLOCK_BYTES):
                    copy.write(block)
        except (Conflict, NotFound):
            return False
        self.delete(file)
        return True

    def delete(self, file: WatchedFile) -> bool:
        """Move the file aside, check its version, and delete it, or put it back if it is another version."""
        path, temporary_path = self._folder / file.name, temporary_path_for(self._folder / file.name)
        with _translate_os_errors(path):
            if self._current_version(path) != file.version:
                return False
            # Move it into a folder, which keeps its name: if this process is killed, a later pass puts it back.
            temporary_path.mkdir()
            try:
                path.rename(temporary_path / file.name)
            except FileNotFoundError:
                temporary_path.rmdir()
                return False
            is_listed = self._current_version(temporary_path / file.name) == file.version
            if is_listed:
                (temporary_path / file.name).unlink()
            else:
                _restore_name(temporary_path / file.name, path)
            temporary_path.rmdir()
        return is_listed

    def _put_back_abandoned(self, temporary_names: Iterable[str]) -> list[str]:
        """Restore files that a killed process had moved aside, and return their names."""
        restored: list[str] = []
        for aside in (self._folder / name for name in temporary_names):
            with suppress(FileNotFoundError, NotADirectoryError, FileExistsError):
                if time.time() - aside.lstat().st_mtime > ASIDE_S:
                    for file in aside.iterdir():
                        _restore_name(file, self._folder / file.name)
                        restored.append(file.name)
                    aside.rmdir()
        return restored

    def delete_from_sibling(self, sibling: str, name: str) -> None:
        """Delete the file, if it exists."""
        with _translate_os_errors(self._sibling_path(sibling, name)):
            self._sibling_path(sibling, name).unlink(missing_ok=True)

    def _sibling_path(self, folder: str, name: str) -> Path:
        return self._folder.parent / folder / name

    def _current_version(self, path: Path) -> str | None:
        try:
            return _version_of(path.lstat())
        except (FileNotFoundError, NotADirectoryError):
            return None


class _LocalReader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def read(self, size: int, /) -> bytes:
        with _translate_os_errors(self._path):
            return self._file.read(size)


def _version_of(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"


def _restore_name(temporary_path: Path, path: Path) -> None:
    """Restore the file's name, unless a newer file has it by now."""
    try:  # a link, unlike a rename, never replaces an existing file
        os.link(temporary_path, path, follow_symlinks=False)
    except FileExistsError:
        pass
    except OSError:  # a disk without such links
        temporary_path.rename(path)
        return
    temporary_path.unlink()


@contextmanager
def _translate_os_errors(path: Path) -> Iterator[None]:
    """Raise OS errors as `NotFound` or `SourceFault`."""
    try:
        with _translate_errors_but_missing(path):
            yield
    except FileNotFoundError as error:
        raise NotFound(f"{path} does not exist") from error


@contextmanager
def _translate_errors_but_missing(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SourceFault(f"{path}: {error.strerror or type(error).__name__}") from error
