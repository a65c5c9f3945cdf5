"""Opens the watched folder of a URI."""

from batchline.models.errors import InvalidInput
from batchline.models.settings import Settings
from batchline.storage.objects.input_uris import require_allowed_s3_uri, resolve_allowed_path
from batchline.sync.folder import JSONL_SUFFIXES, SIBLING_FOLDERS, WatchedFolder


def open_watched_folder(uri: str, settings: Settings) -> tuple[WatchedFolder, str]:
    """Return the watched folder and the pattern of file names; an empty pattern matches all JSONL files.

    Raises `InvalidInput` if the folder or a sibling folder is not below an allowed root.
    """
    if not uri.strip():
        raise InvalidInput("uri is empty; name the folder to watch, such as s3://bucket/inbox/", param="uri")
    folder_uri, pattern = _split_pattern(uri)
    if not folder_uri.startswith("s3://"):
        from batchline.sync.local_folder import LocalWatchedFolder  # noqa: PLC0415 - next to its alternative

        path = resolve_allowed_path(folder_uri, settings, param="uri")
        for name in SIBLING_FOLDERS:
            resolve_allowed_path(str(path.parent / name), settings, param="uri")
        _check_folder_name(path.name)
        return LocalWatchedFolder(path), pattern
    from batchline.sync.s3_folder import S3WatchedFolder  # noqa: PLC0415 - importing takes half a second

    bucket, _, prefix = folder_uri.removeprefix("s3://").partition("/")
    if not bucket:
        raise InvalidInput(f"uri is {uri!r}; it has no bucket: write s3://bucket/inbox/", param="uri")
    require_allowed_s3_uri(f"{folder_uri}/x", settings, param="uri")
    folder = S3WatchedFolder(bucket, prefix, settings)
    for name in SIBLING_FOLDERS:
        require_allowed_s3_uri(folder.sibling_uri(name, "x"), settings, param="uri")
    _check_folder_name(prefix.rpartition("/")[2])
    return folder, pattern


def _split_pattern(uri: str) -> tuple[str, str]:
    """Return the folder and the pattern."""
    scheme = "s3://" if uri.startswith("s3://") else ""
    path = uri.removeprefix(scheme)
    folder, slash, pattern = path.rpartition("/")
    if "*" in folder:
        raise InvalidInput(f"uri is {uri!r}; only its last part may have a '*'", param="uri")
    # A last part without wildcards belongs to the folder, unless it names a JSONL file.
    if set(pattern).isdisjoint("*?[") and not pattern.lower().endswith(JSONL_SUFFIXES):
        folder, pattern = path.rstrip("/"), ""
    default_folder = "" if scheme else slash or "."
    return scheme + (folder or default_folder), pattern


def _check_folder_name(name: str) -> None:
    if name in SIBLING_FOLDERS:
        raise InvalidInput(
            f"uri names a folder {name!r}, which syncs write to; watch a folder of another name", param="uri"
        )
