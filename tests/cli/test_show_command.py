"""`batchline show`: a batch that is over, one that waits, one that runs."""

import signal
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.batch_assertions import new_batch
from helpers.command_line import CommandResult, batch_id_in, run_batchline, running_command
from helpers.polling import until

from batchline.engine.services import open_services
from batchline.models.batches import BatchResponse
from batchline.simulate import Simulator

LINE = (
    '{"custom_id": "c-%d", "method": "POST", "url": "/v1/chat/completions", '
    '"body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "%s"}]}}\n'
)


class FinishedRun(NamedTuple):
    """A batch that is over: what its run told, what a second run of it told, and all requests received."""

    told: CommandResult
    again: CommandResult
    batch_id: str
    settings: dict[str, str]
    received: int


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """A batch of thirty that is over, three of its requests refused."""
    folder = tmp_path_factory.mktemp("shown")
    lines = [LINE % (number, f"{number} simulate:status=422" if number < 3 else number) for number in range(30)]
    (folder / "r.jsonl").write_text("".join(lines))
    with Simulator() as upstream:
        settings = {"BATCHLINE_HOME": str(folder / "home"), "OPENAI_BASE_URL": upstream.base_url}
        told = run_batchline("run", "--local", folder / "r.jsonl", **settings)
        batch_id = batch_id_in(told.out)
        again = run_batchline("run", "--resume", batch_id, **settings)
        return FinishedRun(told, again, batch_id, settings, upstream.counters()["received"])


def test_show_prints_run_summary_again(finished, run_cli):
    shown = run_cli("show", finished.batch_id, **finished.settings)
    assert (shown.status, shown.out, shown.err) == (0, finished.told.out, "")


def test_show_json_is_batch_with_analytics(finished, run_cli):
    shown = run_cli("show", finished.batch_id, "--json", **finished.settings)
    batch = BatchResponse.model_validate_json(shown.out)
    assert (batch.id, batch.request_counts.failed) == (finished.batch_id, 3)
    assert batch.analytics is not None
    assert batch.analytics.total_requests == 27


def test_resume_of_finished_batch_prints_summary_and_sends_nothing(finished):
    assert (finished.again.status, finished.again.out) == (finished.told.status, finished.told.out)
    assert finished.received == 30


def test_show_of_waiting_batch_has_no_results(request_file, run_cli):
    made = new_batch(open_services(), request_file(3))

    shown = run_cli("show", made.id)

    assert shown.out.splitlines()[:2] == [f"batch       {made.id}", "status      validating"]
    assert "output" not in shown.out


@pytest.mark.system
def test_show_of_running_batch_has_pending_count(start_simulator, request_file):
    upstream = start_simulator(latency_s=0.2)
    url = {"OPENAI_BASE_URL": upstream.base_url, "BATCHLINE_MAX_IN_FLIGHT": "4"}
    with running_command("run", "--local", request_file(4_000), **url) as run:
        until(
            lambda: (
                BatchResponse.model_validate_json(
                    run_batchline("show", run.batch_id, "--json").out
                ).request_counts.completed
            )
        )
        shown = run_batchline("show", run.batch_id)
        run.kill(signal.SIGKILL)

    assert "status      in_progress" in shown.out
    assert " pending" in shown.out


@pytest.mark.parametrize("command", ["show", "validate"])
def test_read_only_commands_create_no_storage(command, request_file, tmp_path, run_cli):
    run_cli(command, Path(request_file(2)))
    assert not (tmp_path / "home" / "storage").exists()


@pytest.mark.parametrize(
    ("variables", "page"),
    [
        ({}, "{run}"),
        ({"PREFECT_API_URL": "http://api.corp:4200/api"}, "http://api.corp:4200/runs/flow-run/{run}"),
        (
            {"PREFECT_API_URL": "https://api.prefect.cloud/api/accounts/a-1/workspaces/w-2"},
            "https://app.prefect.cloud/account/a-1/workspace/w-2/runs/flow-run/{run}",
        ),
        (
            {"PREFECT_API_URL": "http://prefect:4200/api", "PREFECT_UI_URL": "https://prefect.corp/"},
            "https://prefect.corp/runs/flow-run/{run}",
        ),
    ],
    ids=["no server", "own server", "cloud", "pages elsewhere"],
)
def test_show_prints_flow_run_urls(variables, page, request_file, run_cli, monkeypatch):
    for name in ("PREFECT_API_URL", "PREFECT_UI_URL"):
        monkeypatch.delenv(name, raising=False)
    services = open_services()
    made = new_batch(services, request_file(3), flow_run_id="11-first")
    first = run_cli("show", made.id, **variables)
    services.records.record_flow_run(made.id, "22-last")

    last, as_json = run_cli("show", made.id, **variables), run_cli("show", made.id, "--json", **variables)

    assert f"flow run    {page.format(run='11-first')}\n" in first.out
    assert "first run" not in first.out
    assert f"flow run    {page.format(run='22-last')}\nfirst run   {page.format(run='11-first')}\n" in last.out
    assert "22-last" not in as_json.out
