"""`batchline run --local` from file to results, against the simulator."""

import gzip
import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.command_line import CommandResult, batch_id_in, run_batchline, running_command
from helpers.polling import until

from batchline.models.batches import BatchResponse
from batchline.models.status import BatchStatus
from batchline.simulate import Simulator, SimulatorOptions

KEY = "sk-never-to-be-seen-4711"
OPTIONS = ("--on-truncated", "fail", "--max-identical-failures", "7")
EMBEDDING = (
    '{"custom_id": "e-%d", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "%d"}}\n'
)


class FinishedRun(NamedTuple):
    """A run that is over, and what the simulator counted in it."""

    ended: CommandResult
    counted: dict
    home: Path

    @property
    def batch(self) -> BatchResponse:
        return BatchResponse.model_validate_json(self.ended.out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Forty requests of two models to an upstream that wants a key, told as JSON."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "night.jsonl"
    path.write_text("".join(chat_request(number) for number in range(40)))
    with Simulator(SimulatorOptions(api_key=KEY)) as upstream:
        ended = run_batchline(
            *("run", "--local", "--json", path, "--window", "6h", "--metadata.team", "search", *OPTIONS),
            cwd=folder,
            BATCHLINE_HOME=str(folder / "home"),
            OPENAI_BASE_URL=upstream.base_url,
            OPENAI_API_KEY=KEY,
        )
        return FinishedRun(ended, upstream.counters(), folder / "home")


def chat_request(number: int) -> str:
    model = "gpt-4o-mini" if number % 2 else "o4-mini"
    body = {"model": model, "messages": [{"role": "user", "content": f"Ünïcode prompt {number}"}]}
    line = {"custom_id": f"c-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(line, ensure_ascii=False) + "\n"


def test_run_with_all_requests_completed_exits_with_0_and_one_line_of_json(finished):
    assert (finished.ended.status, finished.ended.out.count("\n")) == (0, 1)
    assert finished.batch.status is BatchStatus.COMPLETED
    assert (finished.batch.completion_window, finished.batch.metadata) == ("6h", {"team": "search"})
    assert finished.batch.model_dump()["options"] == {"on_truncated": "fail", "max_identical_failures": 7}
    assert finished.batch.dwext is not None
    assert finished.batch.dwext.source == "cli"


def test_run_json_analytics_match_simulator_counters(finished):
    analytics, counted = finished.batch.analytics, finished.counted
    assert analytics is not None
    assert (analytics.total_prompt_tokens, analytics.total_completion_tokens) == (
        counted["prompt_tokens"],
        counted["completion_tokens"],
    )


def test_run_stderr_shows_upstream_and_batch_without_control_characters(finished):
    assert re.match(r"upstream: default at http://127\.0\.0\.1:\d+/v1\n", finished.ended.err)
    assert f"batch: {finished.batch.id} of night.jsonl" in finished.ended.err
    assert not {"\x1b", "\r"} & set(finished.ended.out + finished.ended.err)


def test_run_output_and_files_do_not_contain_api_key(finished):
    assert KEY not in finished.ended.out + finished.ended.err
    files = [path for path in finished.home.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> CommandResult:
    """The end of a run of sixty requests, of which three are refused and twelve go to a model without a price."""
    folder = tmp_path_factory.mktemp("summary")
    lines = [chat_request(number) for number in range(60)]
    lines[:3] = [line.replace("prompt", "simulate:status=422") for line in lines[:3]]
    lines[48:] = [re.sub("o4-mini|gpt-4o-mini", "our-own", line) for line in lines[48:]]
    (folder / "r.jsonl").write_text("".join(lines))
    with Simulator(SimulatorOptions(server_error=0.2)) as upstream:
        settings = {"BATCHLINE_HOME": str(folder / "home"), "OPENAI_BASE_URL": upstream.base_url}
        return run_batchline("run", "--local", folder / "r.jsonl", **settings)


@pytest.fixture(scope="module")
def rows(summary: CommandResult) -> dict[str, str]:
    """The summary's rows by name."""
    return dict(re.findall(r"^(\S(?:.*?\S)?) {2,}(\S.*)$", summary.out, re.MULTILINE))


def test_run_with_some_failed_requests_exits_with_3(summary):
    assert summary.status == 3


def test_run_summary_shows_batch_and_request_counts(summary, rows):
    assert rows["batch"] == batch_id_in(summary.err)
    assert (rows["status"], rows["requests"]) == ("completed", "60: 57 completed, 3 failed")


ROWS = {
    "took": r"\d+ s, [\d.]+/s",
    "tokens": r"[\d,]+: prompt [\d,]+, completion [\d,]+ \(reasoning [\d,]+\)",
    "cost": r"0\.\d+ USD, without our-own \(set BATCHLINE_PRICES\)",
    "latency": r"p50 .+, p90 .+, p95 .+, p99 .+, max .+ m?s",
    "first byte": r"p50 .+, p90 .+, p95 .+, p99 .+, max .+ m?s",
    "retries": r"server_error \d+",
    "failures": r"invalid_request 3 \(most often: status 422 as ordered\)",
}


@pytest.mark.parametrize(("name", "shape"), ROWS.items(), ids=ROWS)
def test_run_summary_row_has_expected_format(name, shape, rows):
    assert re.fullmatch(shape, rows[name])


def test_run_summary_file_paths_exist(rows):
    assert len(Path(rows["output"]).read_bytes().splitlines()) == 57
    assert len(Path(rows["errors"]).read_bytes().splitlines()) == 3
    assert Path(rows["figures"]).read_bytes().startswith(b"PAR1")
    assert Path(rows["report"]).read_bytes().startswith(b"<!doctype html>")


def test_run_with_invalid_input_exits_with_2_and_sends_nothing(start_simulator, request_file, run_cli):
    upstream, path = start_simulator(), request_file(10)
    path.write_text(path.read_text() + "{oops\n")

    ended = run_cli("run", "--local", path, OPENAI_BASE_URL=upstream.base_url)

    assert ended.status == 2
    assert "line 11: " in ended.out
    assert "(invalid_json_line)" in ended.out
    assert "nothing was sent; correct the file and run it again" in ended.out
    assert upstream.counters()["received"] == 0


def test_run_groups_equal_line_errors_and_counts_unlisted_ones(tmp_path, run_cli):
    path = tmp_path / "bad.jsonl"
    path.write_text("words\n" * 1_100)

    ended = run_cli("run", "--local", "--stand-in", path)

    message = "not JSON: invalid syntax at byte 0 of the line (invalid_json_line)"
    assert f"  lines 1\N{EN DASH}999: {message}\n" in ended.out
    assert "101 more errors are not listed; `batchline validate` prints all of them" in ended.out


def test_run_with_wrong_api_key_exits_with_7(start_simulator, request_file, run_cli):
    upstream = start_simulator(api_key="right")
    ended = run_cli(
        "run", "--local", request_file(400), OPENAI_BASE_URL=upstream.base_url, OPENAI_API_KEY="sk-wrong-0815"
    )

    assert ended.status == 7
    assert "check the upstream's api_key" in ended.err
    assert "run --resume batch-" in ended.err
    assert "sk-wrong-0815" not in ended.out + ended.err


def test_run_without_upstream_uses_simulator_and_reports_it_first(request_file):
    ended = run_batchline("run", "--local", request_file(5))

    assert ended.status == 0
    first = ended.err.splitlines()[0]
    assert "simulator on this machine, whose answers are made up" in first
    assert "OPENAI_BASE_URL" in first


def test_run_with_simulator_option_ignores_configured_upstream(start_simulator, tmp_path, run_cli):
    upstream, path = start_simulator(), tmp_path / "embeddings.jsonl"
    path.write_text("".join(EMBEDDING % (number, number) for number in range(7)))

    ended = run_cli("run", "--local", "--stand-in", "--json", path, OPENAI_BASE_URL=upstream.base_url)

    assert json.loads(ended.out)["request_counts"]["completed"] == 7
    assert json.loads(ended.out)["endpoint"] == "/v1/embeddings"
    assert upstream.counters()["received"] == 0


def test_run_of_gzip_file_routes_models_to_toml_upstreams(start_simulator, tmp_path, run_cli):
    fast, slow = start_simulator(), start_simulator()
    Path("batchline.toml").write_text(
        f'[[upstreams]]\nname = "fast"\nbase_url = "{fast.base_url}"\nmodels = ["o4-mini"]\n'
        f'[[upstreams]]\nname = "slow"\nbase_url = "{slow.base_url}"\n'
    )
    path = tmp_path / "r.jsonl.gz"
    path.write_bytes(gzip.compress("".join(chat_request(number) for number in range(10)).encode()))

    ended = run_cli("run", "--local", path)

    assert ended.status == 0
    assert (fast.counters()["models"], slow.counters()["models"]) == ({"o4-mini": 5}, {"gpt-4o-mini": 5})


def test_run_with_endpoint_option_reports_mismatched_urls(start_simulator, request_file, run_cli):
    ended = run_cli(
        "run",
        "--local",
        "--endpoint",
        "/v1/embeddings",
        request_file(3),
        OPENAI_BASE_URL=start_simulator().base_url,
    )

    assert ended.status == 2
    assert "lines 1\N{EN DASH}3: url is '/v1/chat/completions'" in ended.out
    assert ended.out.count("(mismatched_url)") == 1


@pytest.mark.system
def test_long_run_without_terminal_prints_progress_lines(start_simulator, request_file):
    upstream = start_simulator(latency_s=0.25)
    with running_command(
        *("run", "--local", request_file(800)), OPENAI_BASE_URL=upstream.base_url, BATCHLINE_MAX_IN_FLIGHT="16"
    ) as run:
        line = r"^[\d,]+/800 done · 0 failed · [\d.]+/s · [\d,]+ tokens · 16 in flight · about \d+ s left$"
        until(lambda: "done" in run.err or run.process.poll() is not None)
        assert re.search(line, run.err, re.MULTILINE)
