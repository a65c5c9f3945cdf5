"""`batchline batches`, `files` and `housekeeping`: what people and programs see of them."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typed import Ended, batch_id_in

Command = Callable[..., Ended]


@pytest.fixture
def ended(here: Command, simulator, request_file, tmp_path) -> tuple[Callable[..., Ended], str]:
    """A command on a home with a batch of 30 requests that is over, 4 of them failed; and the batch's id."""
    settings = {"OPENAI_BASE_URL": simulator().base_url}
    told = here("run", "--local", request_file(30, refused=range(3, 7)), **settings)
    assert told.status == 3

    def run(*arguments: str | Path, **more: str) -> Ended:
        return here(*arguments, **settings, **more)

    return run, batch_id_in(told.out)


def test_a_list_shows_state_counts_tokens_and_cost(ended):
    run, batch_id = ended
    listed = run("batches", "list")

    [head, row] = listed.out.splitlines()
    assert head.split() == ["batch", "file", "status", "done", "age", "failed", "took", "tokens", "cost"]
    assert row.split()[:4] == [batch_id, "requests-30.jsonl", "completed", "26/30"]
    assert listed.status == 0


def test_json_is_a_list_object_with_analytics(ended):
    run, batch_id = ended
    found = json.loads(run("batches", "list", "--json").out)

    assert (found["object"], found["has_more"], found["first_id"]) == ("list", False, batch_id)
    assert found["data"][0]["analytics"]["total_requests"] == 26


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (("--status", "completed"), True),
        (("--status", "failed"), False),
        (("--search", "REQUESTS-30"), True),
        (("--search", "nothing"), False),
        (("--created-after", "2020-01-01"), True),
        (("--created-before", "2020-01-01T00:00:00"), False),
        (("--member-id", "00000000-0000-4000-8000-000000000000"), False),
        (("--active-first",), True),
    ],
)
def test_every_filter_reaches_the_list(ended, filters, found):
    run, batch_id = ended
    shown = run("batches", "list", *filters)

    assert shown.status == 0
    assert (batch_id in shown.out) is found
    assert found or shown.out == "no batches\n"


def test_results_are_a_table_jsonl_csv_or_parquet(ended, tmp_path):
    run, batch_id = ended
    table = run("batches", "results", batch_id, "--format", "table", "--status", "failed").out
    lines = [json.loads(line) for line in run("batches", "results", batch_id).out.splitlines()]
    rows = list(csv.DictReader(io.StringIO(run("batches", "results", batch_id, "--format", "csv").out)))
    told = run("batches", "results", batch_id, "-o", tmp_path / "r.parquet")
    kept = pq.read_table(tmp_path / "r.parquet").to_pylist()

    assert [line.split()[0] for line in table.splitlines()] == ["line", "4", "5", "6", "7"]
    assert "invalid_request" in table
    assert [line["custom_id"] for line in lines] == [f"request-{number}" for number in range(30)]
    assert [row["id"] for row in rows] == [row["id"] for row in kept] == [line["id"] for line in lines]
    assert (
        json.loads(rows[0]["response_body"]) == json.loads(kept[0]["response_body"]) == lines[0]["response_body"]
    )
    assert told.err == f"wrote 30 results to {tmp_path / 'r.parquet'}\n"


def test_parquet_needs_a_file_and_writes_over_none(ended, tmp_path):
    run, batch_id = ended
    (tmp_path / "there.csv").write_text("mine")

    assert run("batches", "results", batch_id, "--format", "parquet").status == 2
    assert run("batches", "results", batch_id, "-o", tmp_path / "there.csv").status != 0
    assert (tmp_path / "there.csv").read_text() == "mine"


def test_retry_says_how_to_go_on_and_the_list_that_nobody_runs_it(ended):
    run, batch_id = ended
    told = run("batches", "retry", batch_id)

    assert told.out == f"{batch_id}\n"
    assert f"batchline run --resume {batch_id}" in told.err
    assert "in_progress (stopped)" in run("batches", "list").out
    assert run("batches", "resume", batch_id, "--local").status == 3
    assert "completed" in run("batches", "list").out


def test_named_requests_are_retried_at_once(ended):
    run, batch_id = ended
    failed = [
        json.loads(line)["id"]
        for line in run("batches", "results", batch_id, "--status", "failed").out.split("\n")
        if line
    ]

    told = run("batches", "retry", batch_id, *failed[:2], "--local")

    assert "2 requests to send again" in told.err
    assert told.status == 3


def test_what_cannot_be_done_is_one_line_and_status_2(ended):
    run, batch_id = ended
    refused = {
        ("batches", "cancel", batch_id): "completed",
        ("batches", "retry", batch_id, "req-1"): "req-1",
        ("batches", "delete", batch_id): "--yes",
        ("batches", "show", "batch-of-nobody"): "batches list",
        ("batches", "list", "--limit", "101"): "limit",
        ("batches", "list", "--after", "batch-of-nobody"): "batch-of-nobody",
        ("batches", "download", batch_id, "--to", "."): "",
        ("files", "delete", "file-of-nobody"): "file-of-nobody",
        ("files", "list", "--limit", "0"): "limit",
    }
    Path("output.jsonl").write_text("mine")
    for command, word in refused.items():
        told = run(*command)
        assert (told.status, told.out) == (2, ""), command
        assert told.err.startswith("error: ")
        assert word in told.err
        assert told.err.count("\n") <= 3


def test_download_copies_what_there_is(ended, tmp_path):
    run, batch_id = ended
    told = run("batches", "download", batch_id, "--to", tmp_path / "here")

    names = {path.name for path in (tmp_path / "here").iterdir()}
    assert {"output.jsonl", "errors.jsonl", "requests.parquet", "report.json"} <= names
    assert set(told.out.splitlines()) == {str(tmp_path / "here" / name) for name in names}
    assert len((tmp_path / "here" / "output.jsonl").read_text().splitlines()) == 26
    assert run("batches", "download", batch_id, "--to", tmp_path / "here", "--force").status == 0


def test_a_batch_and_its_files_are_deleted_and_its_input_stays(ended):
    run, batch_id = ended
    assert run("batches", "delete", batch_id, "--yes").status == 0

    assert run("batches", "list").out == "no batches\n"
    [file] = json.loads(run("files", "list", "--json").out)["data"]
    assert file["purpose"] == "batch"
    assert run("files", "delete", file["id"]).status == 0
    assert run("files", "list").out == "no files\n"


def test_a_file_is_uploaded_read_made_a_batch_of_and_cancelled(ended, request_file):
    run, _ = ended
    path = request_file(5)
    uploaded = run("files", "upload", path, "--expires-after", "7d")
    file_id = uploaded.out.strip()

    assert run("files", "content", file_id).out == path.read_text()
    assert json.loads(run("files", "show", file_id, "--json").out)["bytes"] == path.stat().st_size
    made = json.loads(run("batches", "create", file_id, "--metadata.night", "1", "--json").out)
    assert (made["status"], made["metadata"]) == ("validating", {"night": "1"})
    assert json.loads(run("batches", "cancel", made["id"], "--json").out)["status"] == "cancelled"


def test_watch_ends_as_run_does(ended):
    run, batch_id = ended
    watched = run("batches", "watch", batch_id)

    assert watched.status == 3
    assert batch_id in watched.out


def test_housekeeping_changes_nothing_unless_told_to(ended):
    run, batch_id = ended
    assert run("housekeeping").out == "nothing to do\n"
    run("batches", "retry", batch_id)
    run("batches", "cancel", batch_id)

    planned = run("housekeeping")
    assert planned.out.startswith(f"to do: resume {batch_id}")
    assert "cancelling" in run("batches", "list").out
    done = run("housekeeping", "--apply")
    assert done.out.startswith(f"done: resume {batch_id}")
    assert "cancelled" in run("batches", "list").out
