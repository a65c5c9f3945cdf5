"""Deletes what is doomed: objects that the records say nothing will need any more."""

import logging
import time

from batchline.models.errors import NotFound, StorageFault
from batchline.steps.engine import Engine
from batchline.storage.objects import ObjectInfo, ObjectStore
from batchline.storage.records import Doomed

log = logging.getLogger(__name__)


def objects_of(store: ObjectStore, some: Doomed) -> list[ObjectInfo]:
    """The objects that are doomed and still there."""
    if some.prefix.endswith("/"):
        return [info for info in store.find(some.prefix) if not (some.kept and info.key.startswith(some.kept))]
    try:
        return [store.info(some.prefix)]
    except NotFound:
        return []


def sweep(engine: Engine, some: Doomed) -> None:
    """Delete those objects; safe to repeat. Raises `StorageFault`."""
    engine.store.delete([info.key for info in objects_of(engine.store, some)])
    engine.records.absolve(some.prefix)


def sweep_now(engine: Engine, *prefixes: str) -> None:
    """Delete what is doomed and due below one of those prefixes; where storage fails, later housekeeping does."""
    try:
        for some in engine.records.doomed(now=time.time()):
            if some.prefix.startswith(prefixes):
                sweep(engine, some)
    except StorageFault as fault:
        log.warning("what is needed no more stays behind for the time being: %s", fault)
