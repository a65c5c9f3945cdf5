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
from batchline.storage.records.store import FileRecord, Idempotency

_calls_by_content: Final[defaultdict[tuple[UUID, int, str], list[UUID]]] = defaultdict(list)
"""By calling run, its attempt and what is asked: the task runs that asked, in the order in which they came."""

_lock = threading.Lock()


def idempotency_of_call(file: FileRecord, request: CreateBatchRequest, blocks: BlockNames) -> Idempotency | None:
    """Return what identifies this call of the flow; None if no other flow called it."""
    context = FlowRunContext.get()
    calling_run = None if context is None else context.flow_run
    if calling_run is None or calling_run.parent_task_run_id is None:
        return None
    with get_client(sync_client=True) as client:
        calling_task = client.read_task_run(calling_run.parent_task_run_id)
        if calling_task.flow_run_id is None:
            return None
        attempt = client.read_flow_run(calling_task.flow_run_id).run_count
    request_digest = _hash_values(
        (file.sha256 or file.id, file.filename, request.endpoint, request.completion_window),
        sorted((request.metadata or {}).items()),
        (blocks.upstreams, blocks.storage),
    )
    # A run of a deployment has a process of its own, which does not see the other calls.
    call_index = (
        calling_task.dynamic_key
        if calling_run.deployment_id
        else str(_index_of_call(calling_task.flow_run_id, attempt, request_digest, calling_task.id))
    )
    return Idempotency(
        key=_hash_values("subflow", str(calling_task.flow_run_id), call_index, request_digest),
        request=request_digest,
    )


def _index_of_call(run_id: UUID, attempt: int, request_digest: str, call_id: UUID) -> int:
    """Return how many equal calls came before. A task that is retried in the same attempt keeps its place."""
    task_context = TaskRunContext.get()
    with _lock:
        calls = _calls_by_content[run_id, attempt, request_digest]
        task_run_id = task_context.task_run.id if task_context is not None else call_id
        if task_run_id not in calls:
            calls.append(task_run_id)
        return calls.index(task_run_id)


def _hash_values(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
