"""Deletes objects that the records have scheduled for deletion (docs/decisions/0008-commits-in-doubt.md)."""

import logging
import time

from batchline.engine.services import Services
from batchline.models.errors import NotFound, StorageFault
from batchline.storage.objects.store import ObjectInfo, ObjectStore
from batchline.storage.records.store import PendingDeletion

log = logging.getLogger(__name__)

DELETION_DELAY_S = 3_600
"""Seconds that parts, inputs in watched folders and replaced files are kept after they become obsolete.

Readers may still have them open, and a database restored from a backup, or failed over to a standby, may not
contain the commit that replaced them.
"""


def find_objects(store: ObjectStore, deletion: PendingDeletion) -> list[ObjectInfo]:
    """Return the objects of a scheduled deletion that still exist."""
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
    """Delete the objects of a scheduled deletion; safe to repeat. Raises `StorageFault`."""
    services.store.delete([info.key for info in find_objects(services.store, deletion)])
    # After the objects: if the process dies in between, the deletion is repeated.
    services.records.unschedule_deletion(deletion.prefix)


def delete_now(services: Services, *prefixes: str, limit: int | None = None) -> None:
    """Carry out up to `limit` deletions due below the prefixes; housekeeping does the others later."""
    try:
        due = [
            deletion
            for deletion in services.records.due_deletions(now=time.time())
            if deletion.prefix.startswith(prefixes)
        ]
        for deletion in due[:limit]:
            delete_objects(services, deletion)
    except StorageFault as fault:
        log.warning("objects that are no longer needed are left to housekeeping: %s", fault)
