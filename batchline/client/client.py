"""The Python client: operations on files and batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Self

from batchline.analytics.prices import PRICE_LIST_CURRENCY
from batchline.client.access import UNRESTRICTED, Access
from batchline.client.batches import Batches
from batchline.client.files import Files
from batchline.client.progress import ProgressTracker
from batchline.client.runner import BatchRunner, ThreadRunner
from batchline.engine.services import Services, open_services
from batchline.models.batches import Origin
from batchline.models.settings import Settings
from batchline.models.sync import SyncEvent, SyncOptions, SyncSummary
from batchline.sync.sync_pass import StartBatch, sync_source
from batchline.upstream.call_metrics import CallMetrics
from batchline.upstream.quota.store import QuotaStore


class ServerMetrics(NamedTuple):
    """Numbers for monitoring: all recorded batches, and the calls of this process since its start."""

    batches_by_status: Mapping[str, int]
    queue_age_s: float
    """Age of the oldest batch that waits for its first run."""

    requests_in_flight: int
    calls: CallMetrics


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
        tracker: ProgressTracker | None = None,
    ) -> None:
        self.services = services or open_services(settings)
        self.runner: BatchRunner = runner or ThreadRunner(self.services)
        self.origin = origin
        self.access = access
        self._tracker = tracker or ProgressTracker(self.services)
        self.files = Files(self.services, access)
        self.batches = Batches(self.services, self.runner, self._tracker, origin, access)

    def derive(
        self, *, access: Access | None = None, origin: Origin | None = None, **settings: object
    ) -> Batchline:
        """Return a client that shares this one's storage and runner, with other rights, origin or settings."""
        services = self.services
        if settings:
            services = replace(services, settings=self.settings.model_copy(update=settings))
        return Batchline(
            services=services,
            origin=origin or self.origin,
            access=access or self.access,
            runner=self.runner,
            tracker=self._tracker,
        )

    @property
    def settings(self) -> Settings:
        """The settings that this client was opened with."""
        return self.services.settings

    @property
    def currency(self) -> str | None:
        """The currency of costs: that of the price list, or None if the settings have prices of their own."""
        return None if self.settings.prices else PRICE_LIST_CURRENCY

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

    def metrics(self) -> ServerMetrics:
        """Return the state of all batches and of this process's calls; raises `StorageFault`."""
        counts, dispatcher = self.services.records.batch_counts, self.services.started_dispatcher
        by_status, oldest_waiting_at = counts.count_by_status(), counts.oldest_waiting_at()
        return ServerMetrics(
            batches_by_status=by_status,
            queue_age_s=0.0 if oldest_waiting_at is None else max(0.0, time.time() - oldest_waiting_at),
            requests_in_flight=0 if dispatcher is None else dispatcher.in_flight,
            calls=CallMetrics() if dispatcher is None else dispatcher.metrics,
        )

    def check_storage(self) -> None:
        """Raise `StorageFault` unless the database and the object storage respond."""
        self.services.records.batch_counts.check_connection()
        self.services.store.exists("readiness")

    def prepare_to_serve(self) -> None:
        """Raise `InvalidInput` if batches cannot be run; share the upstreams' caps if they run in this process.

        The caps are shared with all processes that use the configured Prefect server, if any. Prefect takes
        seconds to import. This happens in the background; sending waits for it.
        """
        self.runner.require_configured()
        settings = self.settings
        if settings.serve_via == "process" and settings.share_budgets and settings.prefect_api_url:
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
