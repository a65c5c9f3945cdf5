"""Identifies the call by which another flow started a batch, so that a retry of that flow finds the batch.

Prefect gives a subflow a run of its own again when the run that called it is retried and the former result was not
kept. The batch is found by the calling run, the input's content and the options. Of calls that are equal in all of
that, it is their place that counts: the first of one attempt takes the batch of the first of the attempt before.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import defaultdict
from typing import Final
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext

from batchline.models.batches import CreateBatchRequest
from batchline.orchestration.blocks import BlockNames
from batchline.storage.records import FileRecord, Idempotency

_places: Final[defaultdict[tuple[UUID, int, str], list[UUID]]] = defaultdict(list)
"""By calling run, its attempt and what is asked: the task runs that asked, in the order in which they came."""

_lock = threading.Lock()


def key_of_call(file: FileRecord, request: CreateBatchRequest, blocks: BlockNames) -> Idempotency | None:
    """Return what identifies this call of the flow; None if no other flow called it."""
    context = FlowRunContext.get()
    run = None if context is None else context.flow_run
    if run is None or run.parent_task_run_id is None:
        return None
    with get_client(sync_client=True) as client:
        caller = client.read_task_run(run.parent_task_run_id)
        if caller.flow_run_id is None:
            return None
        attempt = client.read_flow_run(caller.flow_run_id).run_count
    asked = _digest(
        (file.sha256 or file.id, file.filename, request.endpoint, request.completion_window),
        sorted((request.metadata or {}).items()),
        (blocks.upstreams, blocks.storage),
    )
    # A run of a deployment has a process of its own, which does not see the other calls.
    place = caller.dynamic_key if run.deployment_id else str(_place(caller.flow_run_id, attempt, asked, caller.id))
    return Idempotency(key=_digest("subflow", str(caller.flow_run_id), place, asked), request=asked)


def _place(run_id: UUID, attempt: int, asked: str, call: UUID) -> int:
    """Return how many equal calls came before. A task that is retried in the same attempt keeps its place."""
    task = TaskRunContext.get()
    with _lock:
        calls = _places[run_id, attempt, asked]
        caller = task.task_run.id if task is not None else call
        if caller not in calls:
            calls.append(caller)
        return calls.index(caller)


def _digest(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
