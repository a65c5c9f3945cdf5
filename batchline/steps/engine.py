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
from batchline.storage.objects import ObjectStore, open_objects
from batchline.storage.records import Records, open_records
from batchline.upstream.caller import Caller, caller_for
from batchline.upstream.transport import TransportFactory

if TYPE_CHECKING:
    from batchline.steps.so_far import AnalyticsSoFar

CHECKS_AT_ONCE: Final = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Engine:
    """Settings with the object store and the records that they name; the caller starts when first used.

    An engine with an `open_transport` of its own, such as `through_httpx()`, has a caller of its own as well; the
    others of a process share theirs.
    """

    settings: Settings
    store: ObjectStore
    records: Records
    open_transport: TransportFactory | None = None
    checking: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(CHECKS_AT_ONCE))
    """Held while a file is checked, which only computes: more checks at once keep other threads waiting."""

    @cached_property
    def caller(self) -> Caller:
        """The process's caller of the configured upstreams; raises `InvalidInput` where there are none."""
        if not self.settings.servers:
            raise InvalidInput(
                "no upstream is configured: set OPENAI_BASE_URL (such as http://localhost:8000/v1) and, where the "
                "server wants one, OPENAI_API_KEY; or list [[upstreams]] in batchline.toml",
                param="base_url",
            )
        if self.open_transport is not None:
            return Caller(self.settings.servers, open_transport=self.open_transport)
        return caller_for(self.settings.servers)

    @cached_property
    def analytics_so_far(self) -> "AnalyticsSoFar":
        """The analytics of batches that run."""
        from batchline.steps.so_far import AnalyticsSoFar  # noqa: PLC0415 - which needs engines

        return AnalyticsSoFar(self)

    @property
    def started_caller(self) -> Caller | None:
        """The caller, if anything has been sent yet."""
        caller: Caller | None = vars(self).get("caller")
        return caller


_engines: list[Engine] = []
_lock = threading.Lock()


def open_engine(settings: Settings | None = None) -> Engine:
    """An engine for the settings, by default those of the environment; the same for the same settings."""
    settings = settings or load_settings()
    with _lock:
        for engine in _engines:
            if engine.settings == settings:
                return engine
        engine = Engine(settings=settings, store=open_objects(settings), records=open_records(settings))
        _engines.append(engine)
        return engine


_in_use: ContextVar[Engine | None] = ContextVar("engine", default=None)


@contextmanager
def using_engine(engine: Engine) -> Iterator[None]:
    """Let flows that start inside work with that engine instead of the environment's."""
    token = _in_use.set(engine)
    try:
        yield
    finally:
        _in_use.reset(token)


def engine_in_use() -> Engine | None:
    """The engine that flows are to work with, if one was chosen for them."""
    return _in_use.get()
