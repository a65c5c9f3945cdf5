"""Ways to die: a store and records that fail for good at a chosen write, and processes that are killed."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from batchline import Batchline
from batchline.engine.pipeline import run_local
from batchline.engine.services import Services, open_services
from batchline.models.errors import StorageFault
from batchline.models.settings import Settings
from batchline.models.status import BatchStatus
from batchline.storage.objects.store import ObjectInfo, ObjectStore, ObjectWriter
from batchline.storage.records.store import Lease, Records
from helpers.concurrency import forking
from helpers.record_edits import change_batch

_T = TypeVar("_T")


class WriteBudget:
    """A number of writes, after which every operation fails, as if the process had been killed."""

    def __init__(self, writes: int) -> None:
        self._left = writes
        self._lock = threading.Lock()
        self.is_over = False

    def spend(self) -> None:
        """Take one write; raises `StorageFault` when there is none left."""
        with self._lock:
            self._left -= 1
            self.is_over = self.is_over or self._left < 0
        self.check()

    def check(self) -> None:
        if self.is_over:
            raise StorageFault("this process is dead")


class FailingStore(ObjectStore):
    """Another store, as long as its life lasts; it deletes one by one, so that a death can come between."""

    def __init__(self, store: ObjectStore, life: WriteBudget) -> None:
        self.root = store.root
        self._store = store
        self._life = life

    def info(self, key: str) -> ObjectInfo:
        self._life.check()
        return self._store.info(key)

    def read(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        self._life.check()
        return self._store.read(key, start, end)

    def walk(self, prefix: str) -> Iterator[ObjectInfo]:
        self._life.check()
        return self._store.walk(prefix)

    @contextmanager
    def writer(self, key: str) -> Iterator[ObjectWriter]:
        self._life.check()
        with self._store.writer(key) as file:
            yield file
            self._life.spend()

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._life.spend()
        return self._store.put_if_absent(key, data)

    def concat(self, keys: Sequence[str], target: str) -> int:
        self._life.spend()
        return self._store.concat(keys, target)

    def copy(self, key: str, target: str) -> None:
        self._life.spend()
        self._store.copy(key, target)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._life.spend()
            self._store.delete([key])

    def incomplete_uploads(self, *, older_than_s: float) -> list[str]:
        self._life.check()
        return self._store.incomplete_uploads(older_than_s=older_than_s)

    def abort_upload(self, upload: str) -> None:
        self._life.spend()
        self._store.abort_upload(upload)

    def uri(self, key: str) -> str:
        return self._store.uri(key)


class FailingRecords(Records):
    """Records that fail once the budget is spent; heartbeats cost nothing, as their number depends on timing."""

    def __init__(self, records: Records, life: WriteBudget) -> None:
        super().__init__(records._engine)
        self._life = life
        self._beating = threading.local()

    def heartbeat(self, lease: Lease, **fields: Any) -> BatchStatus:
        self._beating.is_true = True
        try:
            return super().heartbeat(lease, **fields)
        finally:
            self._beating.is_true = False

    def _run_read(self, operation: Callable[..., _T]) -> _T:
        self._life.check()
        return super()._run_read(operation)

    def _run_write(self, operation: Callable[..., _T]) -> _T:
        if getattr(self._beating, "is_true", False):
            self._life.check()
        else:
            self._life.spend()
        return super()._run_write(operation)


def failing_client(services: Services, writes: int) -> tuple[Batchline, WriteBudget]:
    """A client of the services' store and records that dies at the write behind so many."""
    life = WriteBudget(writes)
    store, records = FailingStore(services.store, life), FailingRecords(services.records, life)
    return Batchline(services=Services(settings=services.settings, store=store, records=records)), life


def expire_lease(services: Services, batch_id: str) -> None:
    """Expire the lease of the batch's runner, if it has one."""
    record = services.records.get_batch(batch_id)
    if record.lease_at is not None:
        change_batch(services.records, batch_id, lease_at=record.lease_at - services.settings.lease_s - 1)


def make_deletions_due(services: Services) -> None:
    """Make everything due that is doomed."""
    for some in services.records.due_deletions(now=2**40):
        services.records.schedule_deletion(msgspec.structs.replace(some, due_at=0))


# Processes


def start_run_process(settings: Settings, batch_id: str) -> Any:
    """A process that runs the batch."""
    process = forking.Process(target=_run, args=(settings, batch_id), daemon=True)
    process.start()
    return process


def _run(settings: Settings, batch_id: str) -> None:
    run_local(open_services(settings), batch_id)
