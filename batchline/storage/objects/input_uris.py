"""Opens input files outside the object store, only below the roots that the settings allow."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from batchline.models.errors import InvalidInput, NotFound, StorageFault
from batchline.models.settings import Settings


@contextmanager
def open_input_uri(uri: str, settings: Settings) -> Iterator[IO[bytes]]:
    """Open the file at that path or `s3://` address.

    Raises `InvalidInput` unless it is below one of `settings.source_roots`, after symbolic links are resolved, and
    `NotFound` if there is no file.
    """
    if uri.startswith("s3://"):
        require_allowed_s3_uri(uri, settings)
        from batchline.storage.objects.s3_external import open_external  # noqa: PLC0415 - half a second that local files do not need

        with open_external(uri, settings) as file:
            yield file
        return
    path = resolve_allowed_path(uri, settings)
    try:
        file = path.open("rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise NotFound(f"there is no file at {path}") from error
    except OSError as error:
        raise StorageFault(f"{path} cannot be read: {error.strerror}") from error
    with file:
        yield file


def resolve_allowed_path(uri: str, settings: Settings, *, param: str = "input_uri") -> Path:
    """Return the path with symbolic links resolved; raises `InvalidInput` unless it is below an allowed root."""
    if "://" in uri and not uri.startswith("file://"):
        raise InvalidInput(f"{param} is {uri!r}; give a path or an s3:// address", param=param)
    try:
        path = _resolve_path(uri)
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, an unknown home, a NUL
        raise InvalidInput(f"{param} {uri[:200]!r} is not a valid path: {error}", param=param) from error
    # Compared after links are resolved, since a link below a root may lead out of it.
    roots = [_resolve_path(root) for root in settings.source_roots if not root.startswith("s3://")]
    if not any(path.is_relative_to(root) for root in roots):
        raise _forbidden_uri(uri, settings, param)
    return path


def _resolve_path(path_uri: str) -> Path:
    return Path(path_uri.removeprefix("file://")).expanduser().resolve()


def require_allowed_s3_uri(uri: str, settings: Settings, *, param: str = "input_uri") -> None:
    """Raise `InvalidInput` unless the `s3://` address is below an allowed root."""
    # Not `urlsplit`: in a key `?` and `#` are ordinary characters.
    _, _, key = uri.removeprefix("s3://").partition("/")
    if any(name in {"", ".", ".."} for name in key.split("/")):
        raise InvalidInput(f"{param} is {uri!r}; its key has an empty or dotted name", param=param)
    if not any(
        uri.startswith(root.rstrip("/") + "/") for root in settings.source_roots if root.startswith("s3://")
    ):
        raise _forbidden_uri(uri, settings, param)


def _forbidden_uri(uri: str, settings: Settings, param: str) -> InvalidInput:
    allowed = ", ".join(settings.source_roots) or "none"
    return InvalidInput(
        f"{param} {uri!r} is not below an allowed root (allowed: {allowed}); add one to BATCHLINE_SOURCE_ROOTS",
        param=param,
    )
