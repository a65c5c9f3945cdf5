"""What is measured, each run in a process of its own: `python -m bench.subjects NAME OPTIONS-AS-JSON`.

Prints one line of JSON: requests, wall_s, cpu_s, peak_mb, and what the subject adds.
"""

import asyncio
import importlib
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

PATH = "/v1/chat/completions"
Subject = Callable[[dict[str, Any]], dict[str, Any]]


def _body(options: dict[str, Any]) -> bytes:
    with Path(options["file"]).open("rb") as file:
        return json.dumps(json.loads(file.readline())["body"]).encode()


def _timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    began, cpu = time.perf_counter(), time.process_time()
    result = work()
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    return {"wall_s": wall_s, "cpu_s": cpu_s, "peak_mb": _peak_mb()}, result


def _loop(options: dict[str, Any], send: Callable[[], Awaitable[Any]]) -> Callable[[], Any]:
    async def worker(left: list[int]) -> None:
        while left[0] > 0:
            left[0] -= 1
            await send()

    async def everything() -> None:
        left = [options["requests"]]
        await asyncio.gather(*(worker(left) for _ in range(options["in_flight"])))

    return everything


def own(options: dict[str, Any]) -> dict[str, Any]:
    """Coroutines over batchline's own transport, and nothing else."""
    import uvloop

    from batchline.models.upstreams import Upstream
    from batchline.upstream.transports.asyncio_http import AsyncioHttpTransport

    body = _body(options)

    async def main() -> dict[str, float]:
        upstream = Upstream(base_url=options["base_url"], max_in_flight=options["in_flight"])
        transport = AsyncioHttpTransport(upstream)
        began, cpu = time.perf_counter(), time.process_time()
        await _loop(options, lambda: transport.send(PATH, body))()
        return {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}

    return uvloop.run(main())


def pyreqwest(options: dict[str, Any]) -> dict[str, Any]:
    """Coroutines over pyreqwest, without the time to the first byte."""
    import uvloop
    from pyreqwest.client import ClientBuilder

    body = _body(options)
    url, headers = f"{options['base_url']}/chat/completions", {"content-type": "application/json"}

    async def main() -> dict[str, float]:
        client = ClientBuilder().max_connections(None).pool_max_idle_per_host(options["in_flight"]).build()

        async def send() -> None:
            request = client.post(url).headers(headers).body_bytes(body).build()
            response = await request.send()
            await response.bytes()

        began, cpu = time.perf_counter(), time.process_time()
        await _loop(options, send)()
        return {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}

    return uvloop.run(main())


def httpx_default(options: dict[str, Any]) -> dict[str, Any]:
    """Coroutines over `httpx.AsyncClient` as it comes."""
    import httpx

    body = _body(options)

    async def main() -> dict[str, float]:
        async with httpx.AsyncClient(timeout=None) as client:
            url, headers = f"{options['base_url']}/chat/completions", {"content-type": "application/json"}
            began, cpu = time.perf_counter(), time.process_time()
            await _loop(options, lambda: client.post(url, content=body, headers=headers))()
            return {"wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}

    return asyncio.run(main())


def flexllm(options: dict[str, Any]) -> dict[str, Any]:
    """flexllm's batch call."""
    client_class = importlib.import_module("flexllm.clients.openai").OpenAIClient
    with Path(options["file"]).open() as file:
        lines = [json.loads(line) for line in islice(file, options["requests"])]
    client = client_class(
        base_url=options["base_url"],
        api_key="any",
        model="gpt-4o-mini",
        concurrency_limit=options["in_flight"],
        max_qps=None,
        retry_times=0,
    )
    messages = [line["body"]["messages"] for line in lines]
    figures, answers = _timed(lambda: asyncio.run(client.chat_completions_batch(messages, show_progress=False)))
    return {**figures, "ok": sum(answer is not None for answer in answers)}


def _prepared(options: dict[str, Any]) -> tuple[Any, str]:
    import batchline  # noqa: F401, I001 - chooses Arrow's allocator, so before pandas
    import pandas  # noqa: F401, ICN001 - imports are done before the clock starts
    import pyarrow.parquet  # noqa: F401

    from batchline.models.settings import load_settings
    from batchline.engine.services import open_services
    from batchline.engine.ingest import store_input_file

    settings = load_settings(base_url=options["base_url"], max_in_flight=options["in_flight"])
    engine = open_services(settings)
    return engine, store_input_file(engine, Path(options["file"])).id


def _figures_of(batch: Any, figures: dict[str, float]) -> dict[str, Any]:
    return {**figures, "ok": batch.completed}


def local(options: dict[str, Any]) -> dict[str, Any]:
    """A batch without Prefect."""
    from batchline.engine.ingest import create_batch
    from batchline.engine.pipeline import run_local
    from batchline.models.batches import BatchDwExtResponse, CreateBatchRequest

    engine, file_id = _prepared(options)

    def work() -> Any:
        request = CreateBatchRequest(input_file_id=file_id, endpoint=PATH)
        return run_local(engine, create_batch(engine, request, origin=BatchDwExtResponse(source="api")).id)

    figures, batch = _timed(work)
    return {**_figures_of(batch, figures), **_sending(engine, batch, figures)}


def flow(options: dict[str, Any]) -> dict[str, Any]:
    """A batch as a flow run on the server that PREFECT_API_URL names."""
    from batchline.engine.services import using_services
    from batchline.flows.process_batch import process_batch

    engine, file_id = _prepared(options)
    engine.dispatcher.open_session("warm", deadline=None, grace_s=0).close()
    with using_services(engine):
        figures, batch = _timed(lambda: process_batch(input_file_id=file_id))
    engine.dispatcher.close()  # and give back its share of the caps, for whoever comes next
    return {**figures, "ok": batch.request_counts.completed, **_sending(engine, batch, figures)}


def calm(options: dict[str, Any]) -> dict[str, Any]:
    """The same without Prefect's heartbeats, whose thread looks but once a second whether it is to end."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings(updates={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return flow(options)


def _sending(engine: Any, batch: Any, figures: dict[str, float]) -> dict[str, float]:
    """The mean number under way until the last 256 start, and the wall time before and after sending."""
    import numpy as np
    import pandas as pd

    from batchline.storage.objects import layout

    name = Path(engine.store.uri(layout.requests_key(batch.id)).removeprefix("file://"))
    if not name.exists():
        return {}
    table = pd.read_parquet(name, columns=["started_at", "duration_ms", "total_tokens"])
    start = np.sort(table.started_at.to_numpy())
    begin, until = start[0], start[-min(len(start), 256)]
    first = np.minimum(table.started_at, until)
    last = np.minimum(table.started_at + table.duration_ms / 1e3, until)
    ended = float((table.started_at + table.duration_ms / 1e3).max())
    return {
        "mean_in_flight": float((last - first).sum() / max(1e-9, until - begin)),
        "outside_s": figures["wall_s"] - (ended - float(begin)),
        **_minutes(table.sort_values("started_at")),
    }


def _minutes(table: Any) -> dict[str, float]:
    """The most requests and tokens of any sliding minute, and the mean of a minute from first to last."""
    import numpy as np

    start, tokens = table.started_at.to_numpy(), table.total_tokens.fillna(0).to_numpy()
    behind = np.searchsorted(start, start + 60.0, side="right")
    sums = np.concatenate([[0], np.cumsum(tokens)])
    minutes = max(1e-9, (start[-1] - start[0]) / 60)
    return {
        "most_requests_a_minute": float((behind - np.arange(len(start))).max()),
        "most_tokens_a_minute": float((sums[behind] - sums[:-1]).max()),
        "mean_requests_a_minute": len(start) / minutes,
        "mean_tokens_a_minute": float(tokens.sum()) / minutes,
    }


def sharing(options: dict[str, Any]) -> dict[str, Any]:
    """Requests to an upstream whose caps are shared with other processes, each started at a time that is kept."""
    import numpy as np

    from batchline.models.upstreams import Upstream
    from batchline.orchestration.quota_store import PrefectQuotaStore
    from batchline.steps.requests import build_calls
    from batchline.upstream.dispatcher import Dispatcher

    body = _body(options)
    line = json.dumps({"custom_id": "r", "method": "POST", "url": PATH, "body": json.loads(body)}).encode()
    upstream = Upstream(base_url=options["base_url"], **options["upstream"])
    made = build_calls(
        [(number, line) for number in range(options["requests"])],
        endpoint=PATH,
        only_model=None,
        find_upstream=lambda _: upstream.name,
    )
    started: list[float] = []
    with Dispatcher([upstream]) as caller:
        caller.share_quota(PrefectQuotaStore)
        run = caller.open_session("shared", deadline=None, grace_s=0)

        def work() -> None:
            with run, run.open_queue(0) as feed:
                feed.put(made)
                feed.end_input()
                while not feed.is_done:
                    started.extend(answer.started_at for answer in feed.wait_for_results(0.5) if answer.started_at)

        figures, _ = _timed(work)
    np.save(options["starts"], np.array(started))
    return {**figures, "ok": len(started)}


def validation(options: dict[str, Any]) -> dict[str, Any]:
    """Reading and checking a file, and nothing else."""
    from batchline.models.settings import load_settings
    from batchline.steps.validate_lines import validate_lines

    settings = load_settings(base_url=options["base_url"])
    path = Path(options["file"])

    def blocks() -> Iterator[bytes]:
        with path.open("rb") as file:
            while block := file.read(2**20):
                yield block

    figures, _ = _timed(
        lambda: validate_lines(
            blocks, batch_id="batch-0", input_key="input", endpoint=PATH, settings=settings, max_errors=1_000
        )
    )
    return {**figures, "megabytes": path.stat().st_size / 1e6}


def written(options: dict[str, Any]) -> dict[str, Any]:
    """The file's bytes put into the storage, and nothing else."""
    from batchline.models.settings import load_settings
    from batchline.storage.objects.select import open_objects

    store = open_objects(load_settings(base_url=options["base_url"]))
    store.put("bench/warm", b"up")

    def write() -> None:
        with Path(options["file"]).open("rb") as file, store.writer("bench/written") as target:
            while block := file.read(2**20):
                target.write(block)

    return _timed(write)[0]


SUBJECTS: dict[str, Subject] = {
    "own": own,
    "pyreqwest": pyreqwest,
    "httpx": httpx_default,
    "flexllm": flexllm,
    "local": local,
    "flow": flow,
    "calm": calm,
    "sharing": sharing,
    "validation": validation,
    "written": written,
}


def _peak_mb() -> float:
    """The most memory that this process had resident, in MB.

    Not by `getrusage` where it can be helped: its figure starts from what the parent had when it started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    """Run the subject that the command line names."""
    options = json.loads(sys.argv[2])
    figures = SUBJECTS[sys.argv[1]](options)
    figures = {"peak_mb": _peak_mb(), **figures, "requests": options["requests"]}
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
