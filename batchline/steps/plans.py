"""Stores and reads the plans of a batch: of all its requests, and of each retry."""

import msgspec

from batchline.models.errors import NotFound
from batchline.models.plan import Plan
from batchline.storage.objects import layout
from batchline.storage.objects.store import ObjectStore
from batchline.storage.records.store import BatchRecord

_decode_plan = msgspec.json.Decoder(Plan).decode


def read_plan(store: ObjectStore, batch: BatchRecord) -> Plan:
    """Return the plan of the batch's current generation; raises `NotFound` if it is not stored yet."""
    return _decode_plan(store.read(batch.plan_key or layout.plan_key(batch.id)))


def read_first_plan(store: ObjectStore, batch_id: str) -> Plan:
    """Return the plan of all the batch's requests; raises `NotFound` if it is not stored yet."""
    return _decode_plan(store.read(layout.plan_key(batch_id)))


def store_plan(store: ObjectStore, plan: Plan) -> Plan:
    """Store the plan of a whole batch and return it, or return a stored plan of the same input."""
    # A batch whose record is older than the storage is validated again; its finished parts belong to the chunks of
    # the stored plan.
    try:
        stored = read_first_plan(store, plan.batch_id)
    except NotFound:
        stored = None
    if stored is not None and _input_identity(stored) == _input_identity(plan):
        return stored
    store.put(layout.plan_key(plan.batch_id), msgspec.json.encode(plan))
    return plan


def _input_identity(plan: Plan) -> tuple[object, ...]:
    return plan.input_key, plan.size_bytes, plan.endpoint, plan.total
