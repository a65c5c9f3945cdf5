"""A local folder that files are picked up from. A version is an inode, a size and a time of change."""

import os
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from batchline.models.errors import Conflict, NotFound, SourceFault
from batchline.storage.disk import is_temporary, sync_folder, temporary_beside
from batchline.storage.inbox import Inbox, InboxFile, matches, source_faults
from batchline.storage.objects import STREAM_BYTES, LocalObjects
from batchline.storage.reading import Readable

# No link is followed, and a pipe does not make the opener wait.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

ASIDE_S: Final = 60.0
"""Seconds after which a file that was moved aside, which takes a moment, has been abandoned."""


class LocalInbox(Inbox):
    """A folder of this machine; links in it are left alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = LocalObjects(folder.parent, private=False)
        self.uri = str(folder)
        self.beside = str(folder.parent)

    def files(self, pattern: str) -> Iterator[InboxFile]:
        """The plain files; `changed_at` also moves when a file gets its name or its rights."""
        with _faults(self._folder):
            self._put_back_abandoned()
            names = sorted(name for name in os.listdir(self._folder) if matches(name, pattern))  # noqa: PTH208
        for name in names:
            with suppress(FileNotFoundError), _faults_but_absence(self._folder / name):
                found = os.lstat(self._folder / name)
                if stat.S_ISREG(found.st_mode):
                    yield InboxFile(name, found.st_size, _version(found), found.st_ctime)

    @contextmanager
    def opened(self, file: InboxFile) -> Iterator[Readable]:
        """Read the file; that it is still the same is looked at before and after."""
        path = self._folder / file.name
        with _faults(path):
            raw = os.fdopen(os.open(path, _READ), "rb")
        with raw:
            self._check(file, os.fstat(raw.fileno()))
            yield _Reader(raw, path)
            with _faults(path):
                self._check(file, os.fstat(raw.fileno()), path.lstat())

    def _check(self, file: InboxFile, *found: os.stat_result) -> None:
        if any(not stat.S_ISREG(each.st_mode) or _version(each) != file.version for each in found):
            raise Conflict(f"{self.uri_of(file.name)} has changed since it was listed")

    def free_name(self, file: InboxFile, folder: str, names: Iterable[str]) -> str:
        """The first of those names that no other file has there; the last in any case."""
        name = ""
        for name in names:
            with _faults(self._beside(folder, name)):
                if self._version_at(self._beside(folder, name)) in {None, file.version}:
                    return name
        return name

    def move(self, file: InboxFile, folder: str, name: str) -> bool:
        """Link the file to its new name, look whether it is that version, and take the old name away."""
        path, target = self._folder / file.name, self._beside(folder, name)
        with _faults(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(path, target, follow_symlinks=False)
            except FileNotFoundError:
                return False
            except FileExistsError:
                if self._version_at(target) != file.version:
                    raise
            except OSError:  # another disk, or one without such links
                return self._copied(file, f"{folder}/{name}")
            if self._version_at(target) != file.version:
                target.unlink(missing_ok=True)
                return False
            sync_folder(target.parent)  # before the old name is gone
        self.delete(file)
        return True

    def _copied(self, file: InboxFile, key: str) -> bool:
        try:
            with self.opened(file) as source, source_faults(), self._store.writer(key) as copy:
                while block := source.read(STREAM_BYTES):
                    copy.write(block)
        except (Conflict, NotFound):
            return False
        self.delete(file)
        return True

    def delete(self, file: InboxFile) -> bool:
        """Move the file aside, look whether it is that version, and delete it, or put back what came between."""
        path, aside = self._folder / file.name, temporary_beside(self._folder / file.name)
        with _faults(path):
            if self._version_at(path) != file.version:
                return False
            # A folder keeps the file's name: a process that is killed in between cannot put the file back.
            aside.mkdir()
            try:
                path.rename(aside / file.name)
            except FileNotFoundError:
                aside.rmdir()
                return False
            is_listed = self._version_at(aside / file.name) == file.version
            if is_listed:
                (aside / file.name).unlink()
            else:
                _put_back(aside / file.name, path)
            aside.rmdir()
        return is_listed

    def _put_back_abandoned(self) -> None:
        """Give files their names again that a process which was killed has moved aside."""
        for aside in self._folder.iterdir():
            with suppress(FileNotFoundError, NotADirectoryError, FileExistsError):
                if is_temporary(aside.name) and time.time() - aside.lstat().st_mtime > ASIDE_S:
                    for file in aside.iterdir():
                        _put_back(file, self._folder / file.name)
                    aside.rmdir()

    def write(self, folder: str, name: str, blocks: Iterable[bytes]) -> None:
        """Write a file beside its place and move it there."""
        with source_faults(), self._store.writer(f"{folder}/{name}") as file:
            for block in blocks:
                file.write(block)

    def drop(self, folder: str, name: str) -> None:
        """Delete that file, if it is there."""
        with _faults(self._beside(folder, name)):
            self._beside(folder, name).unlink(missing_ok=True)

    def _beside(self, folder: str, name: str) -> Path:
        return self._folder.parent / folder / name

    def _version_at(self, path: Path) -> str | None:
        try:
            return _version(path.lstat())
        except (FileNotFoundError, NotADirectoryError):
            return None


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path

    def read(self, size: int, /) -> bytes:
        with _faults(self._path):
            return self._file.read(size)


def _version(found: os.stat_result) -> str:
    return f"{found.st_ino}-{found.st_size}-{found.st_mtime_ns}"


def _put_back(aside: Path, path: Path) -> None:
    """Give the file its name again, unless a newer one has it by now."""
    try:
        os.link(aside, path, follow_symlinks=False)
    except FileExistsError:
        pass
    except OSError:  # a disk without such links
        aside.rename(path)
        return
    aside.unlink()


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Turn the system's errors into ours."""
    try:
        with _faults_but_absence(path):
            yield
    except FileNotFoundError as error:
        raise NotFound(f"there is nothing at {path}") from error


@contextmanager
def _faults_but_absence(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SourceFault(f"{path}: {error.strerror or type(error).__name__}") from error
