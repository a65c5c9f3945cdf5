"""Files of requests, and the command in this process."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.command_line import CommandResult, batch_id_in

from batchline.cli import main
from batchline.cli.console import stderr_console, stdout_console
from batchline.engine.services import Services
from batchline.models.ids import new_batch_id, new_file_id
from batchline.models.settings import load_settings
from batchline.models.status import BatchStatus
from batchline.simulate import Simulator
from batchline.storage.records.store import BatchRecord, FileRecord, open_records


@pytest.fixture
def request_file(chat_file: Callable[..., Path]) -> Callable[..., Path]:
    """Write a file of so many requests, of which those with these numbers are refused with 422."""

    def write(count: int, *, refused: range = range(0)) -> Path:
        return chat_file(
            count,
            prompt=lambda number: f"{number}: simulate:status=422" if number in refused else f"Question {number}?",
        )

    return write


@pytest.fixture
def run_cli(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., CommandResult]]:
    """Run the command's entry in this process: for what needs no process of its own, a hundredth of the time."""
    opened: list[Services] = []
    monkeypatch.setattr("batchline.engine.services._open_services", opened)

    def run(*arguments: str | Path, **settings: str) -> CommandResult:
        for name, value in {"COLUMNS": "80", **settings}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["batchline", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_info:
            main()
        assert isinstance(exit_info.value.code, int)
        return CommandResult(exit_info.value.code, *capfd.readouterr())

    forget_consoles()
    yield run
    forget_consoles()
    for services in opened:
        services.records.close()


def forget_consoles() -> None:
    """Make the next command create new consoles."""
    stderr_console.cache_clear()
    stdout_console.cache_clear()


Command = Callable[..., CommandResult]


class BatchCommand(NamedTuple):
    """A command on a home with batches of its own; calling it runs the command."""

    command: Command
    settings: dict[str, str]
    batch_id: str

    def __call__(self, *arguments: str | Path, **more: str) -> CommandResult:
        return self.command(*arguments, **self.settings, **more)


@pytest.fixture
def ended_batch(
    run_cli: Command, start_simulator: Callable[..., Simulator], request_file: Callable[..., Path]
) -> BatchCommand:
    """A home with a batch of 30 requests that is over, of which the fourth to the seventh failed."""
    settings = {"OPENAI_BASE_URL": start_simulator().base_url}
    told = run_cli("run", "--local", request_file(30, refused=range(3, 7)), **settings)
    assert told.status == 3
    return BatchCommand(run_cli, settings, batch_id_in(told.out))


@pytest.fixture
def record_batch() -> Iterator[Callable[..., BatchRecord]]:
    """Put batches on record that nobody has run, the newest last; each as many seconds old as is said."""
    records = open_records(load_settings())
    file = FileRecord(
        id=new_file_id(),
        purpose="batch",
        filename="r.jsonl",
        size_bytes=1,
        created_at=0,
        key="x",
        status="processed",
    )
    records.add_file(file)

    def record(*, age_s: int = 0, **fields: object) -> BatchRecord:
        made = int(time.time()) - age_s
        plain: dict[str, object] = {
            "id": new_batch_id(),
            "status": BatchStatus.VALIDATING,
            "endpoint": "/v1/chat/completions",
            "input_file_id": file.id,
            "input_filename": "r.jsonl",
            "completion_window": "24h",
            "created_at": made,
            "expires_at": made + 86_400,
        }
        return records.add_batch(BatchRecord(**{**plain, **fields}))  # type: ignore[arg-type]

    yield record
    records.close()
