"""Identifies the call by which another flow started a batch, so that a retry of that flow finds the batch.

Prefect creates a new subflow run when the calling run is retried and the earlier result was not persisted. The
batch is found by the calling run, the input's content and the options. Equal calls are distinguished by their
order: the first call of an attempt gets the batch of the first call of the previous attempt.
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
"""By calling run, its attempt and request digest: the ids of the calls' task runs, in order."""

_lock = threading.Lock()


def idempotency_of_call(file: FileRecord, request: CreateBatchRequest, blocks: BlockNames) -> Idempotency | None:
    """Return the idempotency key of this call of the flow, or None if no other flow called it."""
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
        *request.given_options,
    )
    call_index = calling_task.dynamic_key
    if not calling_run.deployment_id:  # a deployment run has its own process, which does not see the other calls
        # A task retried within the attempt keeps its index.
        task_context = TaskRunContext.get()
        task_run_id = task_context.task_run.id if task_context is not None else calling_task.id
        with _lock:
            calls = _calls_by_content[calling_task.flow_run_id, attempt, request_digest]
            if task_run_id not in calls:
                calls.append(task_run_id)
            call_index = str(calls.index(task_run_id))
    return Idempotency(
        key=_hash_values("subflow", str(calling_task.flow_run_id), call_index, request_digest),
        request=request_digest,
    )


def _hash_values(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
