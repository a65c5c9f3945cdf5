"""Opens the configured object store."""

from pathlib import Path

from batchline.models.errors import InvalidInput
from batchline.models.settings import Settings
from batchline.storage.objects.local import LocalObjectStore
from batchline.storage.objects.store import ObjectStore


def open_objects(settings: Settings) -> ObjectStore:
    """Return the configured object store; raises `InvalidInput` for an unknown URL scheme."""
    url = settings.effective_storage_url
    if url.startswith("s3://"):
        from batchline.storage.objects.s3 import S3ObjectStore  # noqa: PLC0415 - half a second that a local store does not need

        return S3ObjectStore(url, settings)
    if "://" in url and not url.startswith("file://"):
        raise InvalidInput(
            f"storage_url starts with {url.partition('://')[0]}://; give a directory or s3://bucket/prefix",
            param="storage_url",
        )
    return LocalObjectStore(Path(url.removeprefix("file://")).expanduser().absolute())
