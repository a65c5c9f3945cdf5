"""Settings with the store, records and dispatcher opened for them, one set per process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Final

from batchline.models.errors import InvalidInput
from batchline.models.settings import Settings, load_settings
from batchline.storage.objects.select import open_objects
from batchline.storage.objects.store import ObjectStore
from batchline.storage.records.store import BatchRecord, Records, open_records
from batchline.upstream.dispatcher import Dispatcher, dispatcher_for
from batchline.upstream.transports.base import TransportFactory

if TYPE_CHECKING:
    from batchline.engine.partial_analytics import PartialAnalytics

MAX_CONCURRENT_VALIDATIONS: Final = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Services:
    """Settings with their object store and records; the dispatcher starts when first used."""

    settings: Settings
    store: ObjectStore
    records: Records
    open_transport: TransportFactory | None = None
    validation_slots: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(MAX_CONCURRENT_VALIDATIONS)
    )
    """Acquired during validation, which is CPU-bound: more at once would starve the other threads."""

    @cached_property
    def dispatcher(self) -> Dispatcher:
        """The dispatcher for the configured upstreams; raises `InvalidInput` if there are none."""
        if not self.settings.all_upstreams:
            raise InvalidInput(
                "no upstream is configured: set OPENAI_BASE_URL (such as http://localhost:8000/v1) and, if the "
                "server needs one, OPENAI_API_KEY; or list [[upstreams]] in batchline.toml",
                param="base_url",
            )
        if self.open_transport is not None:
            # Not the shared one, which would keep sending through the standard transport.
            return Dispatcher(self.settings.all_upstreams, open_transport=self.open_transport)
        return dispatcher_for(self.settings.all_upstreams)

    def is_waiting(self, batch: BatchRecord) -> bool:
        """Return True while the batch is paused, and not for longer than the settings allow."""
        return batch.is_waiting(now=self.records.now(), max_paused_s=self.settings.max_paused_s)

    @cached_property
    def partial_analytics(self) -> "PartialAnalytics":
        """The cached analytics of running batches."""
        from batchline.engine.partial_analytics import PartialAnalytics  # noqa: PLC0415 - loads pandas

        return PartialAnalytics(self.store, self.settings.prices)

    @property
    def started_dispatcher(self) -> Dispatcher | None:
        """The dispatcher, or None if nothing has been sent yet."""
        # From the instance's dict: the cached property itself would start one.
        dispatcher: Dispatcher | None = vars(self).get("dispatcher")
        return dispatcher


_open_services: list[Services] = []
_open_lock = threading.Lock()


def open_services(settings: Settings | None = None) -> Services:
    """Return the services for the settings, by default the environment's; equal settings share one instance."""
    settings = settings or load_settings()
    with _open_lock:
        for services in _open_services:
            if services.settings == settings:
                return services
        services = Services(settings=settings, store=open_objects(settings), records=open_records(settings))
        _open_services.append(services)
        return services


_current_services: ContextVar[Services | None] = ContextVar("engine", default=None)


@contextmanager
def using_services(services: Services) -> Iterator[None]:
    """Make flows started inside the block use these services instead of the environment's."""
    token = _current_services.set(services)
    try:
        yield
    finally:
        _current_services.reset(token)


def current_services() -> Services | None:
    """Return the services chosen with `using_services`, or None."""
    return _current_services.get()
