"""A watched folder as its owner sees it: on this machine, or in a bucket."""

import json
from pathlib import Path
from typing import Any, Protocol

from batchline.client import Batchline
from batchline.engine.pipeline import run_local
from batchline.engine.services import Services
from batchline.models.batches import ListBatchesQuery
from batchline.models.sync import SyncOptions, SyncSummary
from batchline.storage.records.store import BatchRecord
from helpers.request_files import chat_line
from helpers.storage_servers import S3Server


class Folder(Protocol):
    """Files in the folder, and in those beside it."""

    uri: str
    settings: dict[str, Any]

    def put(self, name: str, data: bytes) -> None:
        """Write a file into it."""

    def remove(self, name: str) -> None:
        """Delete a file in it."""

    def names(self, folder: str = "inbox") -> list[str]:
        """Return the names in it, or in a sibling folder."""

    def read(self, name: str, folder: str = "inbox") -> bytes:
        """The content of one of those."""


class LocalFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.uri = str(path)
        self.settings: dict[str, Any] = {"source_roots": (str(path.parent),)}
        path.mkdir(parents=True)

    def put(self, name: str, data: bytes) -> None:
        part = self.path / ".part"
        part.write_bytes(data)
        part.rename(self.path / name)

    def remove(self, name: str) -> None:
        (self.path / name).unlink()

    def names(self, folder: str = "inbox") -> list[str]:
        return sorted(path.name for path in (self.path.parent / folder).glob("*"))

    def read(self, name: str, folder: str = "inbox") -> bytes:
        return (self.path.parent / folder / name).read_bytes()


class S3Folder:
    def __init__(self, server: S3Server, path: str) -> None:
        self.path = path
        self.uri = f"s3://{path}"
        chosen = server.settings(source_roots=(f"s3://{path.rpartition('/')[0]}",))
        self.settings = chosen.model_dump(include=chosen.model_fields_set - {"storage_url"})
        self.client = server.client()

    def put(self, name: str, data: bytes) -> None:
        bucket, _, key = self.path.partition("/")
        self.client.call_s3("put_object", Bucket=bucket, Key=f"{key}/{name}", Body=data)

    def remove(self, name: str) -> None:
        self.client.rm_file(f"{self.path}/{name}")

    def names(self, folder: str = "inbox") -> list[str]:
        place = f"{self.path.rpartition('/')[0]}/{folder}"
        self.client.invalidate_cache()
        try:
            found = self.client.find(place)
        except FileNotFoundError:
            return []
        return sorted(each.removeprefix(f"{place}/") for each in found if each.startswith(f"{place}/"))

    def read(self, name: str, folder: str = "inbox") -> bytes:
        return self.client.cat_file(f"{self.path.rpartition('/')[0]}/{folder}/{name}")


def request_lines(count: int = 2, prompt: str = "Question {}?") -> bytes:
    """The content of a file of chat requests."""
    return "".join(chat_line(number, prompt.format(number)) + "\n" for number in range(count)).encode()


BAD = b'{"custom_id":"a"}\nno json\n'


def sync_only(services: Services, folder: Folder, **options: Any) -> SyncSummary:
    """A round that starts nothing."""
    return Batchline(services=services).sync(folder.uri, SyncOptions(**options), start_batch=lambda batch_id: None)


def sync_and_run(services: Services, folder: Folder, **options: Any) -> SyncSummary:
    """A round that runs each batch to its end and writes back its results."""
    chosen = SyncOptions(**{"write_back": True, **options})
    return Batchline(services=services).sync(
        folder.uri, chosen, start_batch=lambda batch_id: run_local(services, batch_id)
    )


def list_batches(services: Services) -> list[BatchRecord]:
    """All batches, oldest first."""
    found, _ = services.records.list_records(ListBatchesQuery(limit=100), now=0)
    return found[::-1]


def read_inputs(services: Services) -> list[bytes]:
    """Return the input of each batch."""
    files = [services.records.get_file(batch.input_file_id) for batch in list_batches(services)]
    return [services.store.read(file.key) for file in files]


def event_kinds(summary: SyncSummary) -> list[str]:
    """Return the kinds of the events, in order."""
    return [event.kind for event in summary.events]


def parse_errors(data: bytes) -> list[dict[str, object]]:
    """The errors in a file of them."""
    return json.loads(data)["data"]
