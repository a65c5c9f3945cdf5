"""`batchline sync`: a round from the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from batchline import Batchline
from batchline.simulate import Simulator

ROOTS = "BATCHLINE_SOURCE_ROOTS"


@pytest.fixture
def inbox(tmp_path: Path, chat_file: Callable[..., Path]) -> Path:
    folder = tmp_path / "data/inbox"
    folder.mkdir(parents=True)
    chat_file(3).rename(folder / "a.jsonl")
    (folder / "bad.jsonl").write_text("no json\n")
    return folder


@pytest.fixture
def sync(run_cli, inbox: Path, start_simulator: Callable[..., Simulator]):
    """Run it on the inbox, with a simulated upstream."""
    settings = {
        ROOTS: json.dumps([str(inbox.parent)]),
        "BATCHLINE_SOURCE_STILL_S": "0",
        "OPENAI_BASE_URL": start_simulator().base_url,
    }
    return lambda *arguments, **changes: run_cli("sync", inbox, *arguments, **{**settings, **changes})


def test_sync_picks_up_runs_and_writes_back_files(sync, inbox):
    ended = sync("--write-back", "--after", "move", "--metadata.team", "search", "--on-truncated", "fail")

    assert ended.status == 0
    assert "2 found, 1 taken, 1 started, 1 quarantined, 1 written back" in ended.out
    events = ended.err.splitlines()
    (batch,) = Batchline().batches.list()
    assert batch.model_dump()["options"] == {"on_truncated": "fail"}
    assert [event.split()[0] for event in events] == ["taken", "moved", "quarantined", "started", "wrote"]
    folders = {"outbox": ["a.output.jsonl"], "taken": ["a.jsonl"], "inbox": []}
    assert {name: sorted(path.name for path in (inbox.parent / name).iterdir()) for name in folders} == folders


def test_sync_json_has_totals_and_events(sync):
    found = json.loads(sync("--json").out)

    assert (found["found"], found["taken"], found["quarantined"], found["failed"]) == (2, 1, 1, 0)
    assert [event["kind"] for event in found["events"]] == ["taken", "quarantined", "started"]


def test_sync_dry_run_changes_nothing(sync, inbox):
    ended = sync("--dry-run", "--after", "delete")

    assert ended.out.rstrip().endswith("2 found, 2 taken (dry run)")
    assert sorted(path.name for path in inbox.iterdir()) == ["a.jsonl", "bad.jsonl"]


def test_sync_with_failed_move_exits_with_6(sync, inbox):
    (inbox.parent / "taken").write_text("a file")

    assert sync("--after", "move").status == 6


def test_sync_of_folder_outside_allowed_roots_is_rejected(sync):
    ended = sync(**{ROOTS: "[]"})

    assert ended.status == 2
    assert ROOTS in ended.err


@pytest.mark.parametrize("arguments", [["--endpoint", "/v1/no"], ["--window", "1y"], ["--after", "burn"]])
def test_sync_with_invalid_option_exits_with_2(arguments, sync, inbox):
    assert sync(*arguments).status == 2
    assert (inbox / "bad.jsonl").exists()
