"""Deletes what is doomed: objects that the records say nothing will need any more.

A commit can be lost with its database, a deletion cannot: what a commit makes needless is deleted an hour later
(docs/decisions/0008-commits-in-doubt.md).
"""

import logging
import time

from batchline.engine.services import Services
from batchline.models.errors import NotFound, StorageFault
from batchline.storage.objects.store import ObjectInfo, ObjectStore
from batchline.storage.records.store import PendingDeletion

log = logging.getLogger(__name__)

DELETION_DELAY_S = 3_600
"""Seconds that parts, inputs in watched folders and replaced files outlive the commit that makes them needless.

Readers may still have them open, and a database that comes back older than it was (after a power failure or a
failover, from a backup) may not know of that commit.
"""

MAX_DELETIONS_PER_BATCH = 20
"""Prefixes that the end of a batch deletes at most, so that it is not held up by those of many others."""


def find_objects(store: ObjectStore, deletion: PendingDeletion) -> list[ObjectInfo]:
    """The objects that are doomed and still there."""
    if deletion.prefix.endswith("/"):
        return [
            info
            for info in store.list_objects(deletion.prefix)
            if not (deletion.kept and info.key.startswith(deletion.kept))
        ]
    try:
        return [store.info(deletion.prefix)]
    except NotFound:
        return []


def delete_objects(services: Services, deletion: PendingDeletion) -> None:
    """Delete those objects; safe to repeat. Raises `StorageFault`."""
    services.store.delete([info.key for info in find_objects(services.store, deletion)])
    services.records.unschedule_deletion(deletion.prefix)


def delete_now(services: Services, *prefixes: str) -> None:
    """Delete what is doomed and due below one of those prefixes; where storage fails, later housekeeping does."""
    try:
        for deletion in services.records.due_deletions(now=time.time()):
            if deletion.prefix.startswith(prefixes):
                delete_objects(services, deletion)
    except StorageFault as fault:
        log.warning("what is needed no more stays behind for the time being: %s", fault)


def delete_due(services: Services, *, limit: int = MAX_DELETIONS_PER_BATCH) -> None:
    """Delete some of what is due of any batch; the rest is left to the next end of a batch, or to housekeeping."""
    try:
        due = [
            deletion
            for deletion in services.records.due_deletions(now=time.time())
            if deletion.prefix.startswith("batches/")
        ]
        for deletion in due[:limit]:
            delete_objects(services, deletion)
    except StorageFault as fault:
        log.warning("objects that are no longer needed are left to housekeeping: %s", fault)
