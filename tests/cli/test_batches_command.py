"""`batchline batches`: made, listed, cancelled, retried, downloaded, deleted; as people and programs see it."""

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest
from helpers.command_line import COMMAND, Terminal, batch_id_in, command_env
from helpers.scripted_server import COMPLETION, ScriptedServer, reply

from batchline.client.batches import Batches
from batchline.models.analytics import BatchAnalytics, BatchReport
from batchline.models.formatting import format_rate
from batchline.models.status import BatchStatus

VERBS = {"create", "list", "show", "watch", "results", "download", "cancel", "pause", "retry", "resume", "delete"}


def ids(out: str) -> list[str]:
    """The batches in a list object."""
    return [batch["id"] for batch in json.loads(out)["data"]]


# Lists


def test_batches_list_shows_status_counts_tokens_and_cost(ended_batch):
    listed = ended_batch("batches", "list")

    [head, row] = listed.out.splitlines()
    names = ["batch", "file", "status", "completed", "failed", "age", "took", "tokens", "cost"]
    assert head.split() == names
    assert row.split()[:5] == [ended_batch.batch_id, "requests-30.jsonl", "completed", "26/30", "4"]
    assert row.rstrip().endswith(" USD")
    assert listed.status == 0


def test_batches_list_with_configured_prices_shows_no_currency(ended_batch):
    own = '{"gpt-4o-mini": {"input": "1", "output": "1"}}'
    assert "USD" not in ended_batch("batches", "list", BATCHLINE_PRICES=own).out


def test_batches_list_json_is_list_object_with_analytics(ended_batch):
    found = json.loads(ended_batch("batches", "list", "--json").out)

    assert (found["object"], found["has_more"], found["first_id"]) == ("list", False, ended_batch.batch_id)
    assert found["data"][0]["analytics"]["total_requests"] == 26


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (("--status", "completed"), True),
        (("--status", "failed"), False),
        (("--search", "REQUESTS-30"), True),
        (("--search", "nothing"), False),
        (("--created-after", "2020-01-01"), True),
        (("--created-after", "2020-01-01T12:00:00Z"), True),
        (("--created-before", "2020-01-01T00:00:00+02:00"), False),
        (("--member-id", "00000000-0000-4000-8000-000000000000"), False),
        (("--active-first",), True),
        (("--all",), True),
    ],
)
def test_batches_list_applies_each_filter(ended_batch, filters, found):
    shown = ended_batch("batches", "list", *filters)

    assert shown.status == 0
    assert (ended_batch.batch_id in shown.out) is found
    assert found or shown.out == "no batches\n"


def test_batches_list_limit_prints_after_option_for_next_page(run_cli, record_batch):
    made = [record_batch().id for _ in range(5)]
    first = run_cli("batches", "list", "--limit", "2", "--json")
    rest = run_cli("batches", "list", "--after", made[3], "--json")
    told = run_cli("batches", "list", "--limit", "2")

    assert ids(first.out) + ids(rest.out) == made[::-1]
    assert f"--after {made[3]}" in told.err


def test_batches_list_all_joins_pages_into_one_table_and_json(run_cli, record_batch):
    made = [record_batch().id for _ in range(205)]
    found = json.loads(run_cli("batches", "list", "--all", "--json").out)
    lines = run_cli("batches", "list", "--all").out.splitlines()

    assert [batch["id"] for batch in found.pop("data")] == made[::-1]
    assert found == {"object": "list", "first_id": made[-1], "last_id": made[0], "has_more": False}
    assert [line.split()[0] for line in lines] == ["batch", *made[::-1]]


def test_batches_list_without_batches_is_empty_list_object(run_cli):
    assert json.loads(run_cli("batches", "list", "--json", "--all").out) == {
        "object": "list",
        "data": [],
        "has_more": False,
    }
    assert run_cli("batches", "list").out == "no batches\n"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "validating (waiting)"),
        ({"status": BatchStatus.IN_PROGRESS}, "in_progress (stopped)"),
        (
            {"status": BatchStatus.IN_PROGRESS, "lease_owner": "h:1:x", "silent_s": 300.0},
            "in_progress (runner died)",
        ),
        ({"status": BatchStatus.IN_PROGRESS, "lease_owner": "h:1:x", "silent_s": 1.0}, "in_progress "),
        ({"status": BatchStatus.COMPLETED, "completed_at": 1}, "completed "),
    ],
)
def test_batches_list_shows_if_a_runner_is_active(run_cli, record_batch, fields, words):
    silent_s = fields.pop("silent_s", None)
    record_batch(**fields, lease_at=None if silent_s is None else time.time() - silent_s)

    [row] = run_cli("batches", "list").out.splitlines()[1:]
    assert words in row
    assert ("(" in row) is ("(" in words)


def test_batches_list_shows_age_in_largest_unit(run_cli, record_batch):
    for age_s in (3 * 86_400, 7_300, 200, 5):
        record_batch(age_s=age_s)
    rows = run_cli("batches", "list").out.splitlines()[1:]
    assert [re.search(r" (\d+) (s|min|h|d) ", row)[2] for row in rows] == ["s", "min", "h", "d"]
    assert [re.search(r" (\d+) (s|min|h|d) ", row)[1] for row in rows[1:]] == ["3", "2", "3"]


ODD_NAMES = {
    "long": "a" * 150 + ".jsonl",
    "of another script": "日本語のファイル名.jsonl",
    "with markup and escapes": "[bold]red\x1b[31m\u202egnp.jsonl",
}


FACTS_BY_WIDTH = {60: 1, 120: 5}


@pytest.mark.parametrize("columns", FACTS_BY_WIDTH)
def test_batches_list_fits_terminal_width_without_truncating_ids(record_batch, columns):
    usage = BatchAnalytics(
        total_requests=900_000,
        total_prompt_tokens=1,
        total_completion_tokens=1,
        total_tokens=345_000_000,
        total_cost="1234.5",
    )
    batches = [
        record_batch(
            status=BatchStatus.COMPLETED,
            input_filename=name,
            in_progress_at=int(time.time()) - 7_000,
            completed_at=int(time.time()),
            total=1_000_000,
            completed=900_000,
            failed=100_000,
            analytics=usage,
        )
        for name in ODD_NAMES.values()
    ]
    with Terminal("batches", "list", columns=columns) as terminal:
        status = terminal.wait()

    drawn = [line.rstrip() for line in terminal.lines]
    assert status == 0
    rows = [line.partition("  ")[0] for line in drawn if line.startswith("batch-")]
    assert rows == [batch.id for batch in batches[::-1]]
    assert max(map(len, drawn)) <= columns
    facts = ["completed", "900,000/1,000,000", "100,000", "1 h 56 min", "345,000,000", "1,234.50 USD"]
    told = " ".join(line for line in drawn if line.startswith("batch-"))
    assert [fact for fact in facts if told.count(fact) == len(batches)] == facts[: FACTS_BY_WIDTH[columns]]
    assert "\x1b[31m" not in terminal.raw
    assert "\u202e" not in terminal.raw


def test_batches_list_with_closed_pipe_exits_with_0(record_batch):
    for _ in range(300):
        record_batch(input_filename="x" * 200)
    piped = f"set -o pipefail; {COMMAND} batches list --all --json | head -c 10"
    ended = subprocess.run(["bash", "-c", piped], env=command_env(), capture_output=True, text=True, timeout=60)

    assert (ended.returncode, ended.stderr) == (0, "")


# From a file to its end


def test_batches_create_prints_run_command(ended_batch, request_file):
    file_id = ended_batch("files", "upload", request_file(5)).out.strip()
    arguments = ("--metadata.night", "1", "--window", "6h", "--on-limit", "stop")
    made = ended_batch("batches", "create", file_id, *arguments)
    shown = json.loads(ended_batch("batches", "show", made.out.strip(), "--json").out)

    assert f"batchline run --resume {made.out.strip()}" in made.err
    assert (shown["status"], shown["metadata"], shown["completion_window"]) == ("validating", {"night": "1"}, "6h")
    assert (shown["dwext"]["source"], shown["options"]) == ("cli", {"on_limit": "stop"})


def test_batches_create_local_runs_batch_and_applies_expiry(ended_batch, request_file):
    file_id = ended_batch("files", "upload", request_file(5)).out.strip()
    made = ended_batch("batches", "create", file_id, "--local", "--expires-after", "3d", "--json")

    batch = json.loads(made.out)
    assert (made.status, batch["status"], batch["request_counts"]["completed"]) == (0, "completed", 5)
    output = json.loads(ended_batch("files", "show", batch["output_file_id"], "--json").out)
    assert output["expires_at"] - output["created_at"] >= 3 * 86_400


@pytest.mark.system
def test_batches_create_and_retry_with_run_option_use_prefect(ended_batch, request_file, prefect_api):
    file_id = ended_batch("files", "upload", request_file(4, refused=range(1))).out.strip()
    with Terminal(
        "batches", "create", file_id, "--run", PREFECT_API_URL=prefect_api, **ended_batch.settings
    ) as made:
        assert made.wait() == 3
    batch_id = batch_id_in(made.text)
    with Terminal(
        "batches", "retry", batch_id, "--run", PREFECT_API_URL=prefect_api, **ended_batch.settings
    ) as retried:
        assert retried.wait() == 3

    assert f"Prefect server: {prefect_api}" in " ".join(made.text.split())
    assert "1 requests to send again" in retried.text


def test_batches_retry_prints_resume_command_and_list_shows_stopped(ended_batch):
    told = ended_batch("batches", "retry", ended_batch.batch_id)

    assert told.out == f"{ended_batch.batch_id}\n"
    assert f"batchline run --resume {ended_batch.batch_id}" in told.err
    assert "in_progress (stopped)" in ended_batch("batches", "list").out
    assert ended_batch("batches", "resume", ended_batch.batch_id, "--local").status == 3
    assert "completed" in ended_batch("batches", "list").out


def test_batches_retry_local_runs_given_request_ids(ended_batch):
    lines = ended_batch("batches", "results", ended_batch.batch_id, "--status", "failed").out.splitlines()
    failed = [json.loads(line)["id"] for line in lines]

    told = ended_batch("batches", "retry", ended_batch.batch_id, *failed[:2], "--local")

    assert "2 requests to send again" in told.err
    assert told.status == 3


def test_batches_retry_accepts_custom_ids(ended_batch):
    lines = ended_batch("batches", "results", ended_batch.batch_id, "--status", "failed").out.splitlines()
    failed = [json.loads(line) for line in lines]

    told = ended_batch(
        "batches", "retry", ended_batch.batch_id, failed[0]["custom_id"], failed[1]["id"], "--local"
    )
    unknown = ended_batch("batches", "retry", ended_batch.batch_id, "request-999")
    succeeded = ended_batch("batches", "retry", ended_batch.batch_id, "request-0")

    assert "2 requests to send again" in told.err
    assert told.status == 3
    assert (unknown.status, "'request-999' is neither a request id nor a custom_id" in unknown.err) == (2, True)
    assert (succeeded.status, "has not failed" in succeeded.err) == (2, True)


def test_batches_retry_with_mark_sends_answers_with_that_mark_again(run_cli, request_file):
    cut_off = {**COMPLETION, "choices": [{**COMPLETION["choices"][0], "finish_reason": "length"}]}
    server = ScriptedServer(lambda request: reply(body=cut_off if request.number < 2 else None)).start()
    settings = {"OPENAI_BASE_URL": f"{server.base_url}/v1"}
    try:
        batch_id = batch_id_in(run_cli("run", "--local", request_file(5), **settings).out)
        retried = run_cli("batches", "retry", batch_id, "--mark", "truncated", "--local", **settings)
        again = run_cli("batches", "retry", batch_id, "--mark", "truncated", **settings)
        both = run_cli("batches", "retry", batch_id, "request-1", "--mark", "truncated", **settings)
    finally:
        server.stop()

    assert (retried.status, len(server.received)) == (0, 7)
    assert "2 requests to send again" in retried.err
    assert "5: 5 completed, 0 failed" in retried.out
    assert again.status == 2
    assert "no completed request is marked truncated (none has a mark)" in one_line(again.err)
    assert (both.status, "either request ids or --mark" in both.err) == (2, True)


def one_line(text: str) -> str:
    """The text without the line breaks that fit it to the terminal."""
    return " ".join(text.split())


def test_batches_watch_without_runner_exits_with_6(ended_batch):
    ended_batch("batches", "retry", ended_batch.batch_id)
    told = ended_batch("batches", "watch", ended_batch.batch_id, BATCHLINE_LEASE_S="1")

    assert told.status == 6
    assert f"to continue: batchline run --resume {ended_batch.batch_id}" in told.err
    assert "no process runs the batch" in told.err
    assert "in_progress" in told.out


def test_show_rate_matches_report_and_is_omitted_after_retry(ended_batch):
    shown = ended_batch("show", ended_batch.batch_id).out
    store = Path(os.environ["BATCHLINE_HOME"]) / "storage" / "batches" / ended_batch.batch_id
    report = BatchReport.model_validate_json((store / "report.json").read_bytes())
    ended_batch("batches", "retry", ended_batch.batch_id, "--local")

    took = next(line for line in shown.splitlines() if line.startswith("took"))
    assert took.endswith(f", {format_rate(report.requests_per_s)}")
    retried = next(line for line in ended_batch("show", ended_batch.batch_id).out.splitlines() if "took" in line)
    assert retried.startswith("retry took")
    assert "/s" not in retried


def test_batches_cancel_wait_without_runner_exits_with_6(ended_batch):
    ended_batch("batches", "retry", ended_batch.batch_id)
    told = ended_batch("batches", "cancel", ended_batch.batch_id, "--wait")

    assert told.status == 6
    assert (
        f"no process is running it; to write its files: batchline run --resume {ended_batch.batch_id}" in told.err
    )


@pytest.mark.system
def test_batches_cancel_wait_returns_after_runner_ends_batch(ended_batch, start_simulator, request_file):
    slow = {"OPENAI_BASE_URL": start_simulator(latency_s=0.3).base_url, "BATCHLINE_MAX_IN_FLIGHT": "2"}
    with Terminal("run", "--local", request_file(400), **slow) as running:
        running.wait_for("2 in flight")
        told = ended_batch("batches", "cancel", batch_id_in(running.text), "--wait", "--json")
        assert running.wait() == 5

    batch = json.loads(told.out)
    assert (told.status, batch["status"]) == (0, "cancelled")
    counts = batch["request_counts"]
    assert (counts["total"] > counts["completed"], counts["failed"]) == (True, 0)


def test_batches_pause_shows_reason_in_list_and_show(run_cli, record_batch):
    batch_id, other = record_batch(status="in_progress", total=10).id, record_batch().id

    told = run_cli("batches", "pause", batch_id, "--message", "the price went up")

    assert (told.status, told.out) == (0, f"{batch_id}\n")
    assert f"to continue: batchline batches resume {batch_id}" in told.err.replace("\n", " ")
    listed = run_cli("batches", "list", "--paused").out
    assert "(paused)" in listed
    assert other not in listed
    assert re.search(
        r"^paused +the price went up \(by_user, since .+ UTC\)$", run_cli("show", batch_id).out, re.MULTILINE
    )
    assert (
        json.loads(run_cli("batches", "pause", batch_id, "--json").out)["paused"]["message"] == "the price went up"
    )


def test_batches_resume_of_batch_without_server_prints_command(run_cli, record_batch):
    batch_id = record_batch(status="in_progress", total=10).id
    run_cli("batches", "pause", batch_id)

    told = run_cli("batches", "resume", batch_id)

    assert told.status == 7
    assert f"batchline run --resume {batch_id}" in told.err.replace("\n", " ")
    assert "paused" in run_cli("batches", "list", "--paused").out


def test_batches_cancel_of_paused_batch_writes_files(ended_batch):
    ended_batch("batches", "retry", ended_batch.batch_id)
    ended_batch("batches", "pause", ended_batch.batch_id)

    told = ended_batch("batches", "cancel", ended_batch.batch_id, "--json")

    batch = json.loads(told.out)
    assert (told.status, batch["status"], batch["request_counts"]["completed"]) == (0, "cancelled", 26)


def test_run_of_paused_batch_resumes_it(ended_batch):
    ended_batch("batches", "retry", ended_batch.batch_id)
    ended_batch("batches", "pause", ended_batch.batch_id)

    told = ended_batch("run", "--local", "--resume", ended_batch.batch_id, "--json")

    assert (told.status, json.loads(told.out)["status"]) == (3, "completed")


def test_batches_cancel_of_unstarted_batch_is_immediate(run_cli, record_batch):
    told = run_cli("batches", "cancel", record_batch().id, "--json")
    assert (told.status, json.loads(told.out)["status"]) == (0, "cancelled")


# Files and deletion


def test_batches_download_copies_all_files(ended_batch, tmp_path):
    to = tmp_path / "here" / "there"
    told = ended_batch("batches", "download", ended_batch.batch_id, "--to", to)

    names = {path.name for path in to.iterdir()}
    assert {"output.jsonl", "errors.jsonl", "requests.parquet", "report.json"} <= names
    assert set(told.out.splitlines()) == {str(to / name) for name in names}
    assert len((to / "output.jsonl").read_text().splitlines()) == 26


def test_batches_download_overwrites_files_only_with_force(ended_batch, tmp_path):
    (tmp_path / "errors.jsonl").write_text("mine")
    refused = ended_batch("batches", "download", ended_batch.batch_id)
    kept = (tmp_path / "errors.jsonl").read_text(), (tmp_path / "output.jsonl").exists()
    forced = ended_batch("batches", "download", ended_batch.batch_id, "--force", "--json")

    assert (refused.status, kept) == (2, ("mine", False))
    assert "errors.jsonl" in refused.err
    assert "--force" in refused.err
    told = json.loads(forced.out)
    assert told["id"] == ended_batch.batch_id
    assert {Path(file["path"]).stat().st_size for file in told["files"]} == {
        file["bytes"] for file in told["files"]
    }
    assert len((tmp_path / "errors.jsonl").read_text().splitlines()) == 4


def test_batches_download_that_fails_leaves_no_partial_file(ended_batch, tmp_path, monkeypatch):
    def breaking(batches, batch_id):
        del batches, batch_id

        def blocks():
            yield b"the first half"
            raise OSError(28, "No space left on device")

        return {"output.jsonl": blocks()}

    monkeypatch.setattr(Batches, "files", breaking)
    told = ended_batch("batches", "download", ended_batch.batch_id, "--to", tmp_path / "to")

    assert (told.status, told.out) == (6, "")
    assert "No space left on device" in told.err
    assert list((tmp_path / "to").iterdir()) == []


def test_batches_delete_removes_batch_and_keeps_input_file(ended_batch):
    told = ended_batch("batches", "delete", ended_batch.batch_id, "--yes", "--json")
    assert (told.status, json.loads(told.out)) == (
        0,
        {"id": ended_batch.batch_id, "object": "batch", "deleted": True},
    )

    assert ended_batch("batches", "list").out == "no batches\n"
    [file] = json.loads(ended_batch("files", "list", "--json").out)["data"]
    assert file["purpose"] == "batch"


@pytest.mark.parametrize(("answer", "is_left"), [("y", False), ("", True)])
def test_batches_delete_on_terminal_asks_for_confirmation(record_batch, run_cli, answer, is_left):
    batch = record_batch()
    with Terminal("batches", "delete", batch.id) as terminal:
        terminal.wait_for("? [y/N] ")
        terminal.type(f"{answer}\n")
        status = terminal.wait()

    assert f"delete {batch.id} (validating, 0 answers)?" in " ".join(terminal.text.split())
    assert (batch.id in run_cli("batches", "list").out) is is_left
    assert status == (2 if is_left else 0)


# What cannot be


def test_batches_usage_error_is_one_line_with_status_2(ended_batch):
    Path("there.jsonl").write_text("mine")
    batch_id = ended_batch.batch_id
    refused = {
        ("batches", "cancel", batch_id): "completed",
        ("batches", "retry", batch_id, "req-1"): "req-1",
        ("batches", "delete", batch_id): "--yes",
        ("batches", "create", "file-of-nobody"): "file-of-nobody",
        ("batches", "create", "file-of-nobody", "--window", "soon"): "soon",
        ("batches", "create", "file-of-nobody", "--expires-after", "soon"): "--expires-after",
        ("batches", "list", "--limit", "101"): "limit",
        ("batches", "list", "--limit", "5", "--all"): "--all",
        ("batches", "list", "--after", "batch-of-nobody"): "batch-of-nobody",
        ("batches", "list", "--created-after", "yesterday"): "created_after",
        ("batches", "list", "--status", "lost"): "in_progress",
        ("batches", "lst"): "list",
        ("batches", "results", batch_id, "-o", "there.jsonl"): "there.jsonl exists",
        ("batches", "results", batch_id, "-o", "c.xlsx"): ".jsonl, .csv or .parquet",
        ("batches", "results", batch_id, "-o", "c.json"): ".jsonl, .csv or .parquet",
        ("batches", "download", batch_id, "--to", "there.jsonl"): "there.jsonl",
        ("batches", "cost-estimate", "nowhere.jsonl"): "nowhere.jsonl",
    }
    for command, word in refused.items():
        told = ended_batch(*command)
        assert (told.status, told.out) == (2, ""), command
        assert told.err.startswith("error: "), command
        assert word in told.err, command
        assert told.err.count("\n") == 1, command
    assert Path("there.jsonl").read_text() == "mine"


@pytest.mark.parametrize("verb", sorted(VERBS - {"create", "list"}))
def test_unknown_batch_error_suggests_batches_list(run_cli, verb):
    told = run_cli("batches", verb, "batch-of-nobody", *(["--yes"] if verb == "delete" else []))

    assert (told.status, told.out) == (2, "")
    assert "batch-of-nobody" in told.err
    assert "batches list" in told.err


@pytest.mark.parametrize("verb", sorted(VERBS - {"resume", "create"}))
def test_database_failure_exits_with_6(run_cli, verb, tmp_path):
    (tmp_path / "file").write_text("no folder")
    broken = {"BATCHLINE_DATABASE_URL": f"sqlite:///{tmp_path / 'file' / 'x.db'}"}
    told = run_cli("batches", verb, *(["batch-1"] if verb != "list" else []), **broken)

    assert (told.status, told.out) == (6, "")
    assert told.err.count("\n") == 1
