"""`batchline run --local` on a terminal: its display, and Ctrl-C."""

import re
import time
from typing import NamedTuple

import pytest
from helpers.command_line import ESCAPES, Terminal
from helpers.polling import until

from batchline.models.stop_signals import REPEATED_WITHIN_S
from batchline.simulate import Simulator, SimulatorOptions

LINE = (
    '{"custom_id": "c-%d", "method": "POST", "url": "/v1/chat/completions", '
    '"body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "%s"}]}}\n'
)
HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"


@pytest.fixture
def url(start_simulator) -> dict[str, str]:
    """An upstream that takes its time."""
    return {"OPENAI_BASE_URL": start_simulator(latency_s=0.3).base_url, "BATCHLINE_MAX_IN_FLIGHT": "10"}


class DrawnRun(NamedTuple):
    """A run on a terminal so wide, all that it drew, and its exit status."""

    columns: int
    terminal: Terminal
    status: int


@pytest.fixture(scope="module", params=[80, 250])
def drawn(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DrawnRun:
    """A run of sixty requests, the first two refused."""
    folder = tmp_path_factory.mktemp("drawn")
    lines = [LINE % (number, "simulate:status=422" if number < 2 else number) for number in range(60)]
    (folder / "r.jsonl").write_text("".join(lines))
    settings = {"BATCHLINE_HOME": str(folder / "home"), "BATCHLINE_MAX_IN_FLIGHT": "10"}
    with (
        Simulator(SimulatorOptions(latency_s=0.3)) as upstream,
        Terminal(
            *("run", "--local", folder / "r.jsonl"),
            columns=request.param,
            OPENAI_BASE_URL=upstream.base_url,
            **settings,
        ) as terminal,
    ):
        return DrawnRun(request.param, terminal, terminal.wait())


def test_terminal_output_fits_width_except_file_paths(drawn):
    wide = [line for line in drawn.terminal.lines if len(line.rstrip()) > drawn.columns]
    assert drawn.status == 3
    assert [line for line in wide if "/batch-" not in line] == []


def test_terminal_shows_progress_rate_and_time_left(drawn):
    assert re.search(r"━+ +\d+/60 done · 2 failed · about \d+ s left", drawn.terminal.text)
    assert re.search(r"^[\d.]+/s · [\d,]+ tokens · 10 in flight", drawn.terminal.text, re.MULTILINE)


def test_live_display_is_replaced_by_summary(drawn):
    after = ESCAPES.sub("", drawn.terminal.raw.rpartition(SHOW)[2])
    assert "in flight" not in after
    assert re.search(r"^requests +60: 58 completed, 2 failed", after, re.MULTILINE)


def test_summary_file_paths_adapt_to_terminal_width(drawn):
    narrow = r"^files +\S+/batch-[0-9a-f]+/\s*?\r?\n +output\.jsonl, errors\.jsonl, requests\.parquet"
    wide = r"^output +\S+/batch-[0-9a-f]+/output\.jsonl"
    assert re.search(narrow if drawn.columns == 80 else wide, drawn.terminal.text, re.MULTILINE)


@pytest.mark.system
def test_ctrl_c_stops_run_with_resume_command(url, request_file):
    with Terminal("run", "--local", request_file(500), **url) as terminal:
        terminal.wait_for("10 in flight")
        terminal.press_ctrl_c()
        status = terminal.wait()

    assert status == 6
    assert "stopping: requests in flight have 15 s to finish (Ctrl-C again to kill)" in terminal.text
    assert re.search(r"to continue: batchline run --resume batch-[0-9a-f]{32} --local\s*$", terminal.text)
    assert terminal.raw.rfind(SHOW) > terminal.raw.rfind(HIDE)


@pytest.mark.system
def test_second_ctrl_c_kills_run_and_restores_cursor(start_simulator, request_file):
    upstream = start_simulator(latency_s=60)
    with Terminal("run", "--local", request_file(10), OPENAI_BASE_URL=upstream.base_url) as terminal:
        until(lambda: upstream.counters()["received"] == 10)
        terminal.press_ctrl_c()
        terminal.wait_for("Ctrl-C again to kill")
        time.sleep(REPEATED_WITHIN_S)
        terminal.press_ctrl_c()
        status = terminal.wait(timeout_s=5)

    assert status == -2
    assert terminal.raw.rfind(SHOW) > terminal.raw.rfind(HIDE)


def test_terminal_shows_upstream_outage_while_run_waits(start_simulator, request_file):
    upstream = start_simulator(down_from_s=0.0, down_for_s=60.0)
    with Terminal("run", "--local", request_file(10), OPENAI_BASE_URL=upstream.base_url) as terminal:
        terminal.wait_for("upstream default is down")
        terminal.press_ctrl_c()
        status = terminal.wait()

    assert re.search(r"upstream default is down \(.+\); next try in \d+ s", terminal.text)
    assert status == 6
