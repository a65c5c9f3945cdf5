"""Batches made for a test, and whether what became of them adds up."""

import json
import re
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from batchline.engine.ingest import create_batch, store_input_file
from batchline.engine.lease import active_lease
from batchline.engine.pipeline import run_local
from batchline.engine.services import Services
from batchline.models.batches import BatchDwExtResponse, CreateBatchRequest
from batchline.models.error_codes import UNANSWERED_CODES
from batchline.models.errors import Conflict, Interrupted
from batchline.models.status import BatchStatus
from batchline.simulate import Simulator
from batchline.storage.objects import layout
from batchline.storage.records.store import BatchRecord
from helpers.polling import until

TIMEOUT_S = 30.0


def new_batch(
    services: Services, path: Path, *, source: str = "api", flow_run_id: str | None = None, **request: Any
) -> BatchRecord:
    """Record a batch of the file, which no process runs yet."""
    file_id = store_input_file(services, path).id
    chosen = CreateBatchRequest(**{"input_file_id": file_id, "endpoint": "/v1/chat/completions", **request})
    return create_batch(services, chosen, origin=BatchDwExtResponse(source=source), flow_run_id=flow_run_id)


def resume_batch(services: Services, batch_id: str) -> BatchRecord:
    """The batch after it has gone on, as soon as the lease of the runner that died is stale."""
    give_up_at = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return run_local(services, batch_id)
        except Conflict:
            assert time.monotonic() < give_up_at, "the lease of a dead runner never went stale"
            time.sleep(0.05)


def interrupt_run(batch: BatchRecord, run: Future[BatchRecord], *, once: Callable[[], object]) -> None:
    """Stop a run in this process as Ctrl-C does, as soon as that is true."""
    until(once)
    hold = active_lease(batch.id)
    assert hold is not None
    hold.interrupt("enough for today")
    with pytest.raises(Interrupted):
        run.result()


def received(simulator: Simulator) -> int:
    """Return the number of requests that the simulator has received."""
    return int(simulator.counters()["received"])


def output_of(services: Services, batch: BatchRecord) -> list[dict]:
    return _lines(services, layout.output_key(batch.id))


def errors_of(services: Services, batch: BatchRecord) -> list[dict]:
    return _lines(services, layout.errors_key(batch.id))


def error_codes(services: Services, batch: BatchRecord) -> Counter[str]:
    """Count the failed requests by code."""
    return Counter(line["error"]["code"] for line in errors_of(services, batch))


def _lines(services: Services, key: str) -> list[dict]:
    return [json.loads(line) for line in services.store.read(key).splitlines()]


def check_results(services: Services, batch: BatchRecord, total: int) -> None:
    """Every request has one line in one of the two files, both in input order, and counts and tokens add up."""
    output, errors = output_of(services, batch), errors_of(services, batch)
    good, bad = _numbers(output), _numbers(errors)
    assert sorted(good + bad) == list(range(total))
    assert (good, bad) == (sorted(good), sorted(bad))
    unanswered = sum(line["error"]["code"] in UNANSWERED_CODES for line in errors)
    assert (batch.total, batch.completed, batch.not_completed) == (total, len(good), len(bad))
    assert batch.unanswered == unanswered
    assert (batch.output_file_id is None, batch.error_file_id is None) == (not good, not bad)
    assert batch.analytics is not None
    told = batch.analytics
    assert (told.total_requests, told.total_prompt_tokens, told.total_completion_tokens, told.total_tokens) == (
        len(good),
        *(
            sum(line["response"]["body"]["usage"][name] for line in output)
            for name in ("prompt_tokens", "completion_tokens", "total_tokens")
        ),
    )


def check_unfinished(services: Services, batch: BatchRecord, status: BatchStatus) -> None:
    """The batch has that status, and none of what a finished one has."""
    now = services.records.get_batch(batch.id)
    assert (now.status, now.completed_at, now.analytics) == (status, None, None)
    assert not services.store.exists(layout.output_key(batch.id))
    assert not services.store.exists(layout.manifest_key(batch.id))


def _numbers(lines: list[dict]) -> list[int]:
    return [int(line["custom_id"].removeprefix("request-")) for line in lines]


def count_saved(services: Services, batch: BatchRecord) -> int:
    """Return the number of requests with an answer in storage, in finished parts or segments."""
    prefix = f"batches/{batch.id}/g{batch.generation}"
    keys = [info.key for info in services.store.list_objects(prefix) if info.key.endswith(".jsonl")]
    lines = [line for key in keys if _counts(services, key) for line in services.store.read(key).splitlines()]
    return len({json.loads(line)["id"] for line in lines if line.startswith(b"{")})


def _counts(services: Services, key: str) -> bool:
    """Return True if a rerun uses the object: a part counts once its metrics are written, which come last."""
    stem = re.sub(r"\.(output|errors)\.jsonl$", "", key)
    return stem == key or services.store.exists(f"{stem}.parquet")
