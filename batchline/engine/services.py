"""What every step works with: the settings and the things that they open, once a process."""

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
from batchline.storage.records.store import Records, open_records
from batchline.upstream.dispatcher import Dispatcher, dispatcher_for
from batchline.upstream.transports.base import TransportFactory

if TYPE_CHECKING:
    from batchline.engine.partial_analytics import PartialAnalytics

MAX_CONCURRENT_VALIDATIONS: Final = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Services:
    """Settings with the object store and the records that they name; the caller starts when first used.

    An engine with an `open_transport` of its own, such as `through_httpx()`, has a caller of its own as well; the
    others of a process share theirs.
    """

    settings: Settings
    store: ObjectStore
    records: Records
    open_transport: TransportFactory | None = None
    validation_slots: threading.Semaphore = field(
        default_factory=lambda: threading.Semaphore(MAX_CONCURRENT_VALIDATIONS)
    )
    """Held while a file is checked, which only computes: more checks at once keep other threads waiting."""

    @cached_property
    def dispatcher(self) -> Dispatcher:
        """The process's caller of the configured upstreams; raises `InvalidInput` where there are none."""
        if not self.settings.all_upstreams:
            raise InvalidInput(
                "no upstream is configured: set OPENAI_BASE_URL (such as http://localhost:8000/v1) and, where the "
                "server wants one, OPENAI_API_KEY; or list [[upstreams]] in batchline.toml",
                param="base_url",
            )
        if self.open_transport is not None:
            return Dispatcher(self.settings.all_upstreams, open_transport=self.open_transport)
        return dispatcher_for(self.settings.all_upstreams)

    @cached_property
    def partial_analytics(self) -> "PartialAnalytics":
        """The analytics of batches that run."""
        from batchline.engine.partial_analytics import PartialAnalytics  # noqa: PLC0415 - loads pandas

        return PartialAnalytics(self.store, self.settings.prices)

    @property
    def started_dispatcher(self) -> Dispatcher | None:
        """The caller, if anything has been sent yet."""
        dispatcher: Dispatcher | None = vars(self).get("dispatcher")
        return dispatcher


_open_services: list[Services] = []
_open_lock = threading.Lock()


def open_services(settings: Settings | None = None) -> Services:
    """An engine for the settings, by default those of the environment; the same for the same settings."""
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
    """Let flows that start inside work with that engine instead of the environment's."""
    token = _current_services.set(services)
    try:
        yield
    finally:
        _current_services.reset(token)


def current_services() -> Services | None:
    """The engine that flows are to work with, if one was chosen for them."""
    return _current_services.get()
