"""OpenAI's own package, unchanged but for its base URL."""

import asyncio
import contextlib
import json

import openai
import pytest
from helpers.api_server import ENDPOINT, FINAL_STATUSES, ApiServer, wait_for_end
from helpers.polling import until
from helpers.request_files import write_requests

from batchline import Batchline
from batchline.models.options import BatchOptions


@pytest.fixture
def path(tmp_path):
    return write_requests(
        tmp_path / "r.jsonl", 30, prompt=lambda n: f"{n} simulate:status=400" if n % 10 == 0 else f"{n}?"
    )


def test_openai_client_runs_batch_from_upload_to_results(served: ApiServer, path):
    client = served.openai()
    file = client.files.create(
        file=path, purpose="batch", expires_after={"anchor": "created_at", "seconds": 3_600}
    )
    assert (file.filename, file.bytes, file.purpose) == ("r.jsonl", path.stat().st_size, "batch")
    assert file.expires_at == file.created_at + 3_600
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint=ENDPOINT,
        completion_window="24h",
        metadata={"a": "b"},
        output_expires_after={"anchor": "created_at", "seconds": 7_200},
    )
    assert (batch.status, batch.metadata) == ("validating", {"a": "b"})

    over = wait_for_end(client, batch.id)

    assert over.status == "completed"
    assert (over.request_counts.total, over.request_counts.completed, over.request_counts.failed) == (30, 27, 3)
    lines = [json.loads(line) for line in client.files.content(over.output_file_id).iter_lines()]
    reported = [line["response"]["body"]["usage"] for line in lines]
    assert over.usage is not None
    assert over.usage.input_tokens == sum(usage["prompt_tokens"] for usage in reported) > 0
    assert over.usage.total_tokens == sum(usage["total_tokens"] for usage in reported)
    assert client.batches.list().data[0].usage == over.usage
    assert [line["custom_id"] for line in lines] == [f"request-{n}" for n in range(30) if n % 10]
    assert client.files.content(over.error_file_id).text.count("\n") == 3
    results = [client.files.retrieve(each) for each in (over.output_file_id, over.error_file_id)]
    for each in results:
        assert (each.purpose, each.expires_at) == ("batch_output", over.completed_at + 7_200)
    assert {each.id for each in client.files.list(purpose="batch_output")} == {each.id for each in results}
    assert [each.id for each in client.files.list(purpose="batch")] == [file.id]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_async_openai_client_runs_lists_and_cancels_batches(served: ApiServer, path):
    async def work():
        async with openai.AsyncOpenAI(base_url=served.url, api_key="none", max_retries=0) as client:
            file = await client.files.create(file=path, purpose="batch")
            batch = await client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
            async with asyncio.timeout(60):
                while (batch := await client.batches.retrieve(batch.id)).status != "completed":  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
            content = await client.files.content(batch.output_file_id)
            assert content.text.count("\n") == 27
            assert (await client.files.retrieve(file.id)).filename == path.name
            ids = [batch.id]
            for _ in range(4):
                again = await client.batches.create(
                    input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h"
                )
                with contextlib.suppress(openai.ConflictError):  # it may be over by now
                    assert (await client.batches.cancel(again.id)).status in {"cancelling", "cancelled"}
                ids.insert(0, again.id)
            assert [each.id async for each in client.batches.list(limit=2)] == ids
            with pytest.raises(openai.NotFoundError):
                await client.batches.retrieve("batch-none")
            with pytest.raises(openai.BadRequestError):
                await client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="soon")  # type: ignore[arg-type]
            async with asyncio.timeout(60):
                while any([each.status not in FINAL_STATUSES async for each in client.batches.list()]):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            assert (await client.files.delete(file.id)).deleted
            with pytest.raises(openai.NotFoundError):
                await client.files.retrieve(file.id)

    asyncio.run(work())


def test_openai_client_lists_page_automatically(served: ApiServer):
    client = served.openai()
    files = [client.files.create(file=(f"{n}.jsonl", b"{}\n"), purpose="batch").id for n in range(5)]
    batches = [served.client.batches.create(input_file_id=files[0], via=None).id for _ in range(5)]

    assert [each.id for each in client.files.list(limit=2)] == files[::-1]
    assert [each.id for each in client.files.list(limit=2, order="asc")] == files
    assert [each.id for each in client.files.list(purpose="batch_output")] == []
    assert [each.id for each in client.batches.list(limit=2)] == batches[::-1]


def test_file_list_without_limit_holds_101_files_on_one_page(served: ApiServer):
    """Clients behind a proxy that drops `after` would ask for the same page for ever."""
    for number in range(101):
        served.client.files.create(file=(f"{number}.jsonl", b"{}\n"))

    page = served.openai().files.list()

    assert (len(page.data), page.has_more) == (101, False)


def test_batch_is_paused_and_resumed_over_http(start_api, tmp_path):
    served = start_api(simulator={"latency_s": 0.05}, upstream={"max_in_flight": 2}, chunk_requests=5)
    client, http = served.openai(), served.http()
    file = client.files.create(file=write_requests(tmp_path / "r.jsonl", 100), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 10)

    paused = http.post(f"/v1/batches/{batch.id}/pause", json={"message": "the price went up"}).json()

    assert (paused["status"], paused["paused"]["message"]) == ("in_progress", "the price went up")
    until(lambda: not served.client.runner.is_running(batch.id))
    assert [each["id"] for each in http.get("/v1/batches?paused=true").json()["data"]] == [batch.id]
    assert http.get("/v1/batches?paused=false").json()["data"] == []
    assert http.post(f"/v1/batches/{batch.id}/pause").json()["paused"] == paused["paused"]

    resumed = http.post(f"/v1/batches/{batch.id}/resume").json()

    assert "paused" not in resumed
    assert http.post(f"/v1/batches/{batch.id}/resume").status_code == 409
    over = wait_for_end(client, batch.id)
    assert (over.status, over.request_counts.completed) == ("completed", 100)
    assert http.post(f"/v1/batches/{batch.id}/pause").json()["error"]["message"] == (
        f"batch {batch.id} is completed and cannot be paused"
    )


def test_batch_of_the_command_line_is_not_resumed_by_the_server(served: ApiServer, tmp_path):
    file = served.client.files.create(file=write_requests(tmp_path / "r.jsonl", 1))
    batch = Batchline(services=served.client.services, origin="cli").batches.create(
        input_file_id=file.id, via=None
    )
    http = served.http()
    http.post(f"/v1/batches/{batch.id}/pause")

    refused = http.post(f"/v1/batches/{batch.id}/resume")

    assert refused.status_code == 409
    assert f"batchline run --resume {batch.id}" in refused.json()["error"]["message"]
    assert http.get(f"/v1/batches/{batch.id}").json()["paused"]["code"] == "by_user"


@pytest.mark.parametrize(
    ("ask", "kind", "param"),
    [
        (lambda client: client.batches.retrieve("batch-none"), openai.NotFoundError, None),
        (lambda client: client.files.content("file-none"), openai.NotFoundError, None),
        (lambda client: client.batches.list(after="batch-none"), openai.NotFoundError, None),
        (lambda client: client.batches.list(limit=101), openai.BadRequestError, "limit"),
        (lambda client: client.batches.list(extra_query={"odd": "1"}), openai.BadRequestError, "odd"),
        (lambda client: client.batches.retrieve("b", extra_query={"odd": "1"}), openai.BadRequestError, "odd"),
        (lambda client: client.files.create(file=b"{}", purpose="vision"), openai.BadRequestError, "purpose"),
        (
            lambda client: client.files.create(file=("r.jsonl.gz", b"no"), purpose="batch"),
            openai.BadRequestError,
            "file",
        ),
    ],
    ids=[
        "no batch",
        "no file",
        "no cursor",
        "long page",
        "odd query",
        "odd query of one",
        "another purpose",
        "no gzip",
    ],
)
def test_errors_are_raised_as_openai_client_exceptions(ask, kind, param, served: ApiServer):
    with pytest.raises(kind) as raised:
        ask(served.openai())

    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"


def test_invalid_create_batch_request_error_names_parameter(served: ApiServer):
    client = served.openai()
    file = client.files.create(file=b"{}\n", purpose="batch")
    good = {"input_file_id": file.id, "endpoint": ENDPOINT, "completion_window": "24h"}
    wrong = {
        "endpoint": ({"endpoint": "/v1/files"}, openai.BadRequestError),
        "completion_window": ({"completion_window": "8d"}, openai.BadRequestError),
        "metadata": ({"metadata": {"k" * 65: "v"}}, openai.BadRequestError),
        "output_expires_after.seconds": (
            {"output_expires_after": {"anchor": "created_at", "seconds": 0}},
            openai.BadRequestError,
        ),
        "options.on_truncated": ({"extra_body": {"options": {"on_truncated": "no"}}}, openai.BadRequestError),
        "options": ({"extra_body": {"options": {"on_truncate": "fail"}}}, openai.BadRequestError),
        None: ({"input_file_id": "file-none"}, openai.NotFoundError),
        "stream": ({"extra_body": {"stream": True}}, openai.BadRequestError),
    }
    for param, (changes, kind) in wrong.items():
        with pytest.raises(kind) as raised:
            client.batches.create(**{**good, **changes})
        assert raised.value.param == param


def test_options_come_in_extra_body_and_batches_stop_at_limits_by_default(served: ApiServer):
    client = served.openai()
    file = client.files.create(file=b"{}\n", purpose="batch")
    cases: list[tuple[dict[str, str], str]] = [
        ({}, "stop"),
        ({"on_truncated": "fail"}, "stop"),
        ({"on_limit": "pause"}, "pause"),
    ]
    for options, on_limit in cases:
        batch = client.batches.create(
            input_file_id=file.id,
            endpoint=ENDPOINT,
            completion_window="24h",
            extra_body={"options": options} if options else None,
        )
        assert (batch.model_extra or {}).get("options", {}) == options
        assert served.client.batches.record(batch.id).effective_options == BatchOptions.model_validate(
            {"on_limit": on_limit, **options}
        )


def test_cancel_of_failed_batch_raises_conflict_without_retries(served: ApiServer):
    client = served.openai().with_options(max_retries=5)
    file = client.files.create(file=b"{}\n", purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    assert wait_for_end(client, batch.id).status == "failed"

    with pytest.raises(openai.ConflictError, match="is failed"):
        client.batches.cancel(batch.id)


def test_models_endpoint_lists_models_of_upstreams(start_api):
    served = start_api(upstream={"models": ["b/large", "a"], "name": "gpu"})
    client = served.openai()

    assert [(each.id, each.owned_by) for each in client.models.list()] == [("a", "gpu"), ("b/large", "gpu")]
    assert client.models.retrieve("b/large").owned_by == "gpu"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("c")
