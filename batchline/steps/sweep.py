"""Deletes what is doomed: objects that the records say nothing will need any more.

A commit can be lost with its database, a deletion cannot: what a commit makes needless is deleted an hour later
(docs/decisions/0008-commits-in-doubt.md).
"""

import logging
import time

from batchline.models.errors import NotFound, StorageFault
from batchline.steps.engine import Engine
from batchline.storage.objects import ObjectInfo, ObjectStore
from batchline.storage.records import Doomed

log = logging.getLogger(__name__)

KEPT_S = 3_600
"""Seconds that parts, inputs in watched folders and replaced files outlive the commit that makes them needless.

Readers may still have them open, and a database that comes back older than it was (after a power failure or a
failover, from a backup) may not know of that commit.
"""

SWEPT_AT_ONCE = 20
"""Prefixes that the end of a batch deletes at most, so that it is not held up by those of many others."""


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


def sweep_due(engine: Engine, *, most: int = SWEPT_AT_ONCE) -> None:
    """Delete some of what is due of any batch; the rest is left to the next end of a batch, or to housekeeping."""
    try:
        due = [some for some in engine.records.doomed(now=time.time()) if some.prefix.startswith("batches/")]
        for some in due[:most]:
            sweep(engine, some)
    except StorageFault as fault:
        log.warning("objects that are no longer needed are left to housekeeping: %s", fault)
