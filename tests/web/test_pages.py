"""Web pages: batches in every state, lists and their filters, results, files, and large numbers."""

import time

import pytest
from helpers.api_server import ENDPOINT, ApiServer, root_of, wait_for_end
from helpers.polling import until
from helpers.record_edits import change_batch
from helpers.request_files import write_requests
from helpers.web_client import WebClient

from batchline import Batchline
from batchline.models.analytics import BatchAnalytics
from batchline.models.batches import BatchResponse
from batchline.models.status import BatchStatus
from batchline.storage.objects import local

STATES = {
    BatchStatus.VALIDATING: "Checking",
    BatchStatus.IN_PROGRESS: "In progress",
    BatchStatus.FINALIZING: "Writing files",
    BatchStatus.COMPLETED: "Completed",
    BatchStatus.FAILED: "Failed",
    BatchStatus.EXPIRED: "Expired",
    BatchStatus.CANCELLING: "Cancelling",
    BatchStatus.CANCELLED: "Cancelled",
}


def some_fail(number: int) -> str:
    return f"{number} simulate:status=400" if number % 3 == 1 else f"Question {number}?"


def made(
    served: ApiServer, folder, count: int = 6, *, name: str = "r.jsonl", prompt=some_fail, **create
) -> BatchResponse:
    """A batch that has run."""
    file = served.client.files.create(file=write_requests(folder / name, count, prompt=prompt))
    batch = served.client.batches.create(input_file_id=file.id, **create)
    return served.client.batches.wait(batch.id, timeout_s=60)


def unrun(served: ApiServer, **record) -> BatchResponse:
    """A batch that nobody runs, as its record says."""
    file = served.client.files.create(file=("waiting.jsonl", b"{}\n"))
    # From the command line, so that the server leaves it alone.
    client = Batchline(services=served.client.services, origin="cli")
    batch = client.batches.create(input_file_id=file.id, via=None)
    change_batch(served.client.services.records, batch.id, **record)
    return batch


def test_batch_page_shows_outcome_times_files_and_failures(served: ApiServer, web_client: WebClient, tmp_path):
    batch = made(served, tmp_path, metadata={"night": "2026-11-26"})

    page = web_client.open(f"/batches/{batch.id}")

    page.assert_drawn_with_numbers()
    words = page.words()
    assert "4 of 6 requests were answered, 2 failed." in words
    for step in ("Created", "Sending", "Writing", "Completed"):
        assert step in words
    assert "line 2 · request-1 · HTTP 400" in words
    assert page.row("invalid_request")[1] == "2"
    assert "night 2026-11-26" in words
    assert "Came from api" in words
    assert page.form(f"/batches/{batch.id}/retry").buttons == 1
    assert f"/batches/{batch.id}/cancel" not in page.html
    for name in ("report.html", "report.json", "requests.parquet"):
        answer = web_client.http.get(f"/batches/{batch.id}/{name}")
        assert answer.content == b"".join(served.client.batches.files(batch.id)[name])
        assert answer.headers["content-disposition"].startswith(
            "inline" if name == "report.html" else "attachment"
        )
    for file_id in (batch.input_file_id, batch.output_file_id, batch.error_file_id):
        answer = web_client.http.get(f"/files/{file_id}/content")
        assert answer.content == b"".join(served.client.files.content(str(file_id)))
        assert answer.headers["content-disposition"].startswith("attachment")
        assert f"/files/{file_id}" in page.html


def test_report_links_lead_to_batch_files(served: ApiServer, web_client: WebClient, tmp_path):
    batch = made(served, tmp_path)
    report = web_client.http.get(f"/batches/{batch.id}/report.html")
    for name in ("output.jsonl", "errors.jsonl", "requests.parquet", "report.json"):
        assert f'href="{name}"' in report.text
        assert web_client.http.get(f"/batches/{batch.id}/{name}").status_code == 200
    assert web_client.open(f"/batches/{batch.id}/plan.json").status == 404


def test_running_batch_page_shows_progress_and_can_cancel(start_api, tmp_path):
    served = start_api(simulator={"latency_s": 0.5}, flush_interval_s=0.1)
    file = served.client.files.create(file=write_requests(tmp_path / "r.jsonl", 400))
    batch = served.client.batches.create(input_file_id=file.id)
    with WebClient(served.url.removesuffix("/v1")) as web_client:
        until(
            lambda: (
                "0 of 400 requests are done" not in (words := web_client.open(f"/batches/{batch.id}").words())
                and "of 400 requests are done" in words
            )
        )
        page = web_client.open(f"/batches/{batch.id}")
        assert ("data-live", "2") in page.attributes
        assert "In flight" in page.words()
        assert "Tokens so far" in page.words()
        assert "400" in web_client.open("/", status="in_progress").words()
        results = web_client.open(f"/batches/{batch.id}/results", status="in_progress")
        assert "request-" in results.html

        cancelled = web_client.send(page, f"/batches/{batch.id}/cancel")

        assert cancelled.answer.url.path == f"/batches/{batch.id}"
        assert served.client.batches.wait(batch.id, timeout_s=60).status == "cancelled"
        over = web_client.open(f"/batches/{batch.id}")
        assert ("data-live", "") in over.attributes
        assert "Cancelled" in over.words()


def test_cancelled_batch_page_separates_unanswered_from_failed(start_api, tmp_path):
    served = start_api(simulator={"latency_s": 30}, grace_s=0)
    file = served.client.files.create(file=write_requests(tmp_path / "r.jsonl", 40))
    batch = served.client.batches.create(input_file_id=file.id)
    until(lambda: served.simulator.counters()["received"])
    served.client.batches.cancel(batch.id)
    served.client.batches.wait(batch.id, timeout_s=60)
    with WebClient(served.url.removesuffix("/v1")) as web_client:
        page = web_client.open(f"/batches/{batch.id}")

    words = page.words()
    assert "None of the 40 requests was answered: 40 were cancelled." in words
    assert "Failed 0 0 % Cancelled 40 100 %, not answered" in words
    assert "What was not answered" in words
    assert "Retry 40 requests" in words
    assert "40 failed" not in words


def test_retried_batch_page_counts_attempts_of_both_runs(served: ApiServer, web_client: WebClient, tmp_path):
    batch = made(served, tmp_path, 30)
    served.client.batches.retry(batch.id)
    served.client.batches.wait(batch.id, timeout_s=60)

    page = web_client.open(f"/batches/{batch.id}")

    assert "Attempts 40" in page.words()
    assert "Last retry took" in page.words()
    assert "answered" not in page.words().partition("Last retry took")[2].partition("Latency")[0]
    repeated = next(table for table in page.tables if table[0][0] == "Repeated because of")
    assert [row[:2] for row in repeated[1:]] == [["invalid_request", "10"]]
    attempts = next(table for table in page.tables if table[0][0] == "Attempts")
    assert [row[:2] for row in attempts[1:]] == [["1", "20"], ["2", "10"]]


@pytest.mark.parametrize(("status", "is_offered"), [("", True), ("failed", True), ("completed", False)])
def test_retry_of_selected_requests_is_offered_only_with_selectable_rows(
    status: str, is_offered: bool, served: ApiServer, web_client: WebClient, tmp_path
):
    batch = made(served, tmp_path)
    page = web_client.open(f"/batches/{batch.id}/results", status=status)
    assert ('id="retry-chosen"' in page.html) is is_offered
    assert ('name="request_id"' in page.html) is is_offered


@pytest.mark.parametrize("status", BatchStatus)
def test_every_batch_status_has_a_label(status, served: ApiServer, web_client: WebClient):
    batch = unrun(served, status=status)
    page = web_client.open(f"/batches/{batch.id}")
    assert (page.status, STATES[status] in page.words()) == (200, True)
    assert STATES[status] in web_client.open("/", search=batch.id).row(STATES[status])[0]


def test_batch_page_without_runner_shows_resume_command(served: ApiServer, web_client: WebClient):
    batch = unrun(served, status=BatchStatus.IN_PROGRESS, total=9, in_progress_at=int(time.time()))
    page = web_client.open(f"/batches/{batch.id}")
    assert f"batchline run --resume {batch.id}" in page.words()
    assert "0 of 9 requests are done" in page.words()


def test_batch_page_of_invalid_file_lists_line_errors(served: ApiServer, web_client: WebClient):
    file = served.client.files.create(file=("bad.jsonl", b'{"custom_id": "a"\n\n[]\n'))
    batch = served.client.batches.create(input_file_id=file.id)
    served.client.batches.wait(batch.id, timeout_s=60)

    page = web_client.open(f"/batches/{batch.id}")

    assert "nothing was sent" in page.words()
    assert [row[0] for row in page.tables[0]] == ["Line", "1", "3"]
    assert page.tables[0][2][2] == "invalid_json_line"
    assert "2 errors in the file" in web_client.open("/", search=batch.id).words()


def test_batch_list_formats_large_numbers_and_truncates_long_names(served: ApiServer, web_client: WebClient):
    usage = BatchAnalytics(total_tokens=1_005_339_119, total_cost="237.6527829")
    unrun(
        served,
        status=BatchStatus.COMPLETED,
        total=1_000_000,
        completed=998_412,
        failed=1_588,
        analytics=usage,
        input_filename="a" * 300 + ".jsonl",
    )
    words = web_client.open("/", search="aaaaaaaa").words()
    assert "998,412 of 1,000,000 · 1,588 failed" in words
    assert "1.01 G" in words
    assert "237.65" in words
    assert "a" * 119 + "…" in words
    assert "a" * 121 not in words


# Lists


def test_empty_lists_link_to_new_batch(start_api):
    with WebClient(start_api().url.removesuffix("/v1")) as web_client:
        page = web_client.open("/")
        assert "There are no batches yet" in page.words()
        assert page.form("/new").kind == "multipart/form-data"
        assert "No batch matches" in web_client.open("/", search="x").words()
        assert "/new" in web_client.open("/files").links()


def test_batch_list_filters_by_status_text_and_date(served: ApiServer, web_client: WebClient):
    for name, status in (("apples", BatchStatus.COMPLETED), ("pears", BatchStatus.FAILED)):
        unrun(served, status=status, input_filename=name, **{f"{status}_at": 1})
    today = time.strftime("%Y-%m-%d", time.gmtime())

    def shown(**query: str) -> set[str]:
        page = web_client.open("/", **query)
        return {name for name in ("apples", "pears") if name in page.html}

    assert shown() == {"apples", "pears"}
    assert shown(status="completed") == {"apples"}
    assert shown(status="failed", search="pea") == {"pears"}
    assert shown(search="APPLE") == {"apples"}
    assert shown(created_from=today, created_to=today) == {"apples", "pears"}
    assert shown(created_to="2026-01-01") == set()
    assert shown(created_from="2999-01-01") == set()
    assert shown(status="", search="", created_from="") == {"apples", "pears"}


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/?status=odd", "status"),
        ("/?created_from=soon", "created_after"),
        ("/?member=bob", "member_id"),
        ("/?after=batch-1", "batch-1"),
        ("/files?purpose=fun", "purpose"),
    ],
)
def test_invalid_list_filter_is_rejected_by_name(path, names, web_client: WebClient):
    page = web_client.open(path)
    assert page.status in {400, 404}
    assert names in page.words()


def test_list_paging_keeps_filters(served: ApiServer, web_client: WebClient):
    ids = [unrun(served, status=BatchStatus.COMPLETED, completed_at=1).id for _ in range(25)]

    first = web_client.open("/", status="completed", order="newest")
    (more,) = (link for link in first.links() if "after=" in link)
    second = web_client.open(more.replace("&amp;", "&"))

    assert "status=completed" in more
    assert [each in first.html for each in ids] == [False] * 5 + [True] * 20
    assert [each in second.html for each in ids] == [True] * 5 + [False] * 20
    assert "/?status=completed&order=newest" in second.links()
    files = web_client.open("/files")
    assert sum("after=" in link for link in files.links()) == 1


def test_batch_list_puts_running_first_unless_newest_is_requested(served: ApiServer, web_client: WebClient):
    running = unrun(served, status=BatchStatus.IN_PROGRESS, created_at=1, input_filename="in turn").id
    over = unrun(served, status=BatchStatus.COMPLETED, completed_at=1, input_filename="in turn").id
    first = web_client.open("/", search="in turn").html
    assert first.index(running) < first.index(over)
    newest = web_client.open("/", order="newest", search="in turn").html
    assert newest.index(over) < newest.index(running)


def test_batch_list_reads_no_stored_files(served: ApiServer, web_client: WebClient, tmp_path, monkeypatch):
    batch = made(served, tmp_path)
    monkeypatch.setattr(local.LocalObjectStore, "read", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(local.LocalObjectStore, "stream", lambda *_, **__: 1 / 0)
    page = web_client.open("/", search=batch.id)
    assert (page.status, "4 of 6" in page.words()) == (200, True)


# Results


def test_results_page_supports_search_filters_paging_and_download(
    served: ApiServer, web_client: WebClient, tmp_path
):
    batch = made(served, tmp_path, 60)
    path = f"/batches/{batch.id}/results"

    first = web_client.open(path, limit=50)
    assert "Requests 1 to 50 of 60" in first.words()
    assert first.html.count('name="request_id"') == 17
    (following,) = (link for link in first.links() if "skip=50" in link)
    assert "Requests 51 to 60 of 60" in web_client.open(following.replace("&amp;", "&")).words()

    failed = web_client.open(path, status="failed", search="request-1")
    assert {f"request-{n}" in failed.html for n in (1, 10, 13, 16, 19)} == {True}
    assert "request-11" not in failed.html
    lines = web_client.http.get(
        f"{path}.jsonl", params={"status": "failed", "search": "request-1"}
    ).text.splitlines()
    assert len(lines) == 5
    assert "No request matches" in web_client.open(path, search="zzz").words()
    assert web_client.open(path, status="odd").status == 400
    assert web_client.open(path, skip="-1").status == 400


def test_results_page_shows_prompt_response_and_json(served: ApiServer, web_client: WebClient, tmp_path):
    batch = made(served, tmp_path, 3)
    (item,) = served.client.batches.results(batch.id, limit=1)

    page = web_client.open(f"/batches/{batch.id}/results")

    answer = item.response_body["choices"][0]["message"]["content"]
    assert "Question 0?" in page.words()
    assert page.words().count(" ".join(answer.split())) >= 2  # in words and in JSON
    assert '"finish_reason": "stop"' in page.words()
    assert "invalid_request: status 400 as ordered" in page.words()
    (alone,) = (link for link in page.links() if "skip=0&limit=1" in link)
    assert item.id in web_client.http.get(alone.replace("&amp;", "&")).text


def test_retry_of_selected_requests_leaves_others_unchanged(served: ApiServer, web_client: WebClient, tmp_path):
    batch = made(served, tmp_path, 6)
    page = web_client.open(f"/batches/{batch.id}/results", status="failed")
    ids = [value for name, value in page.attributes if name == "value" and str(value).startswith("req-")]

    none = web_client.send(page, f"/batches/{batch.id}/retry-requests")
    again = web_client.send(page, f"/batches/{batch.id}/retry-requests", request_id=[str(ids[0])])

    assert (none.status, "no request is selected" in none.html) == (400, True)
    assert again.answer.url.path == f"/batches/{batch.id}"
    over = served.client.batches.wait(batch.id, timeout_s=60)
    assert over.request_counts.failed == 2
    assert "Retried once" in web_client.open(f"/batches/{batch.id}").words()


# Files, and what is for good


def test_file_page_shows_first_lines_and_deletes_after_confirmation(
    served: ApiServer, web_client: WebClient, tmp_path
):
    file = served.client.files.create(file=write_requests(tmp_path / "r.jsonl", 30))
    page = web_client.open(f"/files/{file.id}")
    assert "request-19" in page.html
    assert "request-20" not in page.html
    assert f"/new?file={file.id}" in page.links()

    asked = web_client.open(f"/files/{file.id}/delete")
    assert served.client.files.retrieve(file.id).id == file.id
    gone = web_client.send(asked, f"/files/{file.id}/delete")

    assert (gone.answer.url.path, file.id in gone.html) == ("/files", False)
    assert file not in served.client.files.list().data


def test_batch_is_deleted_after_confirmation(served: ApiServer, web_client: WebClient, tmp_path):
    batch = made(served, tmp_path)
    gone = web_client.send(web_client.open(f"/batches/{batch.id}/delete"), f"/batches/{batch.id}/delete")
    assert gone.answer.url.path == "/"
    assert batch.id not in {each.id for each in served.client.batches.list().data}


def test_cancel_of_finished_batch_shows_conflict_page_with_link(
    served: ApiServer, web_client: WebClient, tmp_path
):
    batch = made(served, tmp_path)
    page = web_client.post(f"/batches/{batch.id}/cancel")
    assert (page.status, "completed" in page.words(), "/" in page.links()) == (409, True, True)


def test_batch_created_on_page_has_frontend_source_in_api(served: ApiServer, web_client: WebClient, tmp_path):
    content = write_requests(tmp_path / "r.jsonl", 2).read_bytes()
    started = web_client.send(web_client.upload("r.jsonl", content), "/batches")
    api = served.openai()
    batch = wait_for_end(api, started.answer.url.path.rpartition("/")[2])
    assert batch.endpoint == ENDPOINT
    assert batch.to_dict()["dwext"] == {"source": "frontend"}


def test_batch_page_pauses_and_resumes(start_api, tmp_path):
    served = start_api(simulator={"latency_s": 0.5})
    file = served.client.files.create(file=write_requests(tmp_path / "r.jsonl", 1_000))
    batch = served.client.batches.create(input_file_id=file.id)
    until(lambda: served.client.batches.record(batch.id).in_progress_at)
    with WebClient(root_of(served.url)) as client:
        client.send(client.open(f"/batches/{batch.id}"), f"/batches/{batch.id}/pause")
        until(lambda: not served.client.runner.is_running(batch.id))
        page = client.open(f"/batches/{batch.id}")
        assert "someone paused it" in page.words()
        assert "stands still" in page.words()
        client.send(page, f"/batches/{batch.id}/resume")

    assert served.client.batches.wait(batch.id, timeout_s=60).request_counts.completed == 1_000
