"""The Python client: operations on files and batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

from batchline.client.access import UNRESTRICTED, Access
from batchline.client.batches import Batches
from batchline.client.files import Files
from batchline.client.runner import BatchRunner, ThreadRunner
from batchline.engine.services import Services, open_services
from batchline.models.batches import Origin
from batchline.models.settings import Settings
from batchline.models.sync import SyncEvent, SyncOptions, SyncSummary
from batchline.sync.sync_pass import StartBatch, sync_source
from batchline.upstream.quota.store import QuotaStore


class Batchline:
    """Client for the files and batches in the configured storage and database.

    ```python
    with Batchline() as client:
        file = client.files.create(file="requests.jsonl")
        batch = client.batches.create(input_file_id=file.id)
        batch = client.batches.wait(batch.id)
        for item in client.batches.results(batch.id, status="failed"):
            print(item.custom_id, item.error)
    ```

    Leaving the block stops the batches that still run in this process; they can be resumed.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        services: Services | None = None,
        origin: Origin = "api",
        access: Access = UNRESTRICTED,
        runner: BatchRunner | None = None,
    ) -> None:
        self.services = services or open_services(settings)
        self.runner: BatchRunner = runner or ThreadRunner(self.services)
        self.origin = origin
        self.access = access
        self.files = Files(self.services, access)
        self.batches = Batches(self.services, self.runner, origin, access)

    def for_access(self, access: Access) -> Batchline:
        """Return a client with those rights that shares this one's services and runner."""
        return Batchline(services=self.services, origin=self.origin, access=access, runner=self.runner)

    def with_origin(self, origin: Origin) -> Batchline:
        """Return a client that shares this one's runner and records `origin` on the batches it creates."""
        return Batchline(services=self.services, origin=origin, access=self.access, runner=self.runner)

    def sync(
        self,
        uri: str,
        options: SyncOptions | None = None,
        *,
        start_batch: StartBatch,
        on_event: Callable[[SyncEvent], object] | None = None,
        dry_run: bool = False,
    ) -> SyncSummary:
        """Create a batch for each new version of a file in a watched folder; see `sync_source`."""
        return sync_source(
            self.services,
            uri,
            options,
            new_batch=self.batches.new_record,
            start_batch=start_batch,
            on_event=on_event,
            dry_run=dry_run,
        )

    def check_storage(self) -> None:
        """Raise `StorageFault` unless the database and the object storage respond."""
        self.services.records.batch_counts.check_connection()
        self.services.store.exists("readiness")

    def share_quotas(self) -> None:
        """Share the upstreams' caps with all processes that use the configured Prefect server, if any.

        Prefect takes seconds to import. This happens in the background; sending waits for it.
        """
        settings = self.services.settings
        if settings.share_budgets and settings.prefect_api_url:
            self.services.dispatcher.share_quota(_open_quota_store)

    def close(self) -> None:
        """Stop the batches that run in this process; answers received so far are saved."""
        self.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open_quota_store() -> AbstractContextManager[QuotaStore]:
    from batchline.orchestration.quota_store import PrefectQuotaStore  # noqa: PLC0415 - Prefect takes seconds to import

    return PrefectQuotaStore()
