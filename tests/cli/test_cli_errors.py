"""Errors of the command line."""

import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers.command_line import COMMAND, command_env, run_batchline

SECRET = "sk-secret-2718"
GOOD = '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}\n'
UPSTREAM = {"OPENAI_API_KEY": SECRET, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
NO_UPSTREAM = {"OPENAI_API_KEY": "", "OPENAI_BASE_URL": ""}


class Misuse(NamedTuple):
    """Something that cannot be, the exit status that says so, and words that the message must have."""

    arguments: str
    status: int
    words: tuple[str, ...]
    settings: dict[str, str] = {}  # noqa: RUF012 - never changed


WRONG = {
    "a file that is not there": Misuse("run nowhere.jsonl", 2, ("nowhere.jsonl", "no such file")),
    "a folder": Misuse("run folder", 2, ("folder cannot be read", "is a directory")),
    "a link to itself": Misuse("run circle.jsonl", 2, ("circle.jsonl cannot be read", "symbolic links")),
    "a disk that fails": Misuse("run /proc/self/mem", 6, ("machine failed", "Input/output error")),
    "what only looks compressed": Misuse("run plain.gz", 2, ("plain.gz", "does not decompress as gzip")),
    "neither file nor batch": Misuse("run", 2, ("FILE", "batchline run requests.jsonl", "--resume BATCH_ID")),
    "both file and batch": Misuse("run good.jsonl --resume batch-1", 2, ("either", "not both")),
    "an unknown batch to go on with": Misuse("run --resume batch-1 --stand-in", 2, ("there is no batch batch-1",)),
    "options of a new batch for an old one": Misuse(
        "run --resume batch-1 --stand-in --window 2h --endpoint /v1/responses", 2, ("--endpoint, --window",)
    ),
    "a batch that is not there": Misuse("run --resume batch-1", 2, ("batch-1",), NO_UPSTREAM),
    "a window without a unit": Misuse("run good.jsonl --window 24", 2, ("'24'", "'90m', '24h' or '7d'")),
    "a window that is too long": Misuse("run good.jsonl --window 8d", 2, ("'8d'", "1m to 7d")),
    "an endpoint that is none": Misuse("run good.jsonl --endpoint /v1/files", 2, ("/v1/files", "/v1/embeddings")),
    "too much metadata": Misuse(
        f"run good.jsonl {' '.join(f'--metadata.k{number} v' for number in range(17))}", 2, ("17 pairs", "16")
    ),
    "an unknown option": Misuse("run good.jsonl --fast", 2, ("--fast", "`batchline run --help`")),
    "an unknown command": Misuse("walk good.jsonl", 2, ("walk", "validate", "`batchline --help`")),
    "options of a folder that is not watched": Misuse("prefect serve --after move", 2, ("--after", "--watch")),
    "an option without its value": Misuse("run good.jsonl --window", 2, ("--window", "argument")),
    "a setting of the wrong type": Misuse(
        "run good.jsonl", 2, ("max_in_flight", "integer"), {"BATCHLINE_MAX_IN_FLIGHT": "lots"}
    ),
    "a key with a line break": Misuse(
        "run good.jsonl", 2, ("OPENAI_API_KEY", "ASCII"), {"OPENAI_API_KEY": f"{SECRET}\n"}
    ),
    "an address that is none": Misuse(
        "run good.jsonl", 2, ("OPENAI_BASE_URL", "http://"), {"OPENAI_BASE_URL": "localhost:8000"}
    ),
    "an address with an endpoint": Misuse(
        "run good.jsonl",
        2,
        ("OPENAI_BASE_URL", "/chat/completions", "write http://h/v1"),
        {"OPENAI_BASE_URL": "http://h/v1/chat/completions"},
    ),
    "an empty address beside a key": Misuse(
        "run good.jsonl", 2, ("OPENAI_BASE_URL is set but empty", "unset"), {"OPENAI_BASE_URL": ""}
    ),
    "a database that does not answer": Misuse(
        "run good.jsonl",
        6,
        ("database failed", "refused"),
        {"BATCHLINE_DATABASE_URL": f"postgresql://me:{SECRET}@127.0.0.1:1/x"},
    ),
    "a database of another kind": Misuse(
        "run good.jsonl",
        2,
        ("'mysql'", "sqlite", "postgresql"),
        {"BATCHLINE_DATABASE_URL": f"mysql://me:{SECRET}@h/x"},
    ),
    "a home that is a file": Misuse(
        "run good.jsonl", 6, ("plain.gz cannot be created",), {"BATCHLINE_HOME": "plain.gz"}
    ),
    "a storage that is a file": Misuse(
        "run good.jsonl", 6, ("plain.gz", "Not a directory"), {"BATCHLINE_STORAGE_URL": "plain.gz"}
    ),
    "an option with an unknown value": Misuse(
        "run good.jsonl --on-limit wait", 2, ("--on-limit", "'pause' or 'stop'", "`batchline run --help`")
    ),
    "an option out of range": Misuse(
        "sync folder --max-identical-failures 0", 2, ("--max-identical-failures", "greater than or equal to 1")
    ),
    "options for a batch that has its own": Misuse(
        "run --resume batch-1 --on-truncated fail", 2, ("remove --on-truncated",)
    ),
    "an unknown batch to show": Misuse("show batch-1", 2, ("there is no batch batch-1",)),
    "nothing to show": Misuse("show", 2, ("BATCH_ID", "`batchline show --help`")),
    "nothing to validate": Misuse("validate", 2, ("FILE", "`batchline validate --help`")),
    "a file to validate that is not there": Misuse("validate nowhere.jsonl", 2, ("nowhere.jsonl", "no such file")),
    "an endpoint to validate for that is none": Misuse(
        "validate good.jsonl --endpoint x", 2, ("'x'", "/v1/responses")
    ),
    "a share above one": Misuse(
        "simulate --port 0 --rate-limited 7", 2, ("--rate-limited", "less than or equal to 1")
    ),
    "an unknown distribution": Misuse("simulate --latency normal", 2, ("--latency", "'lognormal'")),
    "an address to serve at that is not ours": Misuse(
        "simulate --host 192.0.2.1 --port 8123", 2, ("192.0.2.1 port 8123", "--port")
    ),
    "a database to upgrade that does not answer": Misuse(
        "db upgrade",
        6,
        ("database failed",),
        {"BATCHLINE_DATABASE_URL": f"postgresql://me:{SECRET}@127.0.0.1:1/x"},
    ),
}


@pytest.fixture
def some_files(tmp_path: Path) -> None:
    (tmp_path / "good.jsonl").write_text(GOOD)
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain.gz").write_text("not compressed")
    (tmp_path / "circle.jsonl").symlink_to("circle.jsonl")


@pytest.mark.usefixtures("some_files")
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_error_is_one_line_without_secrets(wrong, run_cli):
    ended = run_cli(*wrong.arguments.split(), **UPSTREAM | wrong.settings)

    assert ended.status == wrong.status
    assert ended.out == ""
    (line,) = [line for line in ended.err.splitlines() if not line.startswith("upstream: ")]
    assert line.startswith("error: ")
    assert [word for word in wrong.words if word not in line] == []
    assert SECRET not in ended.err


def test_resume_without_upstream_names_missing_setting(run_cli, record_batch):
    ended = run_cli("run", "--resume", record_batch().id, **NO_UPSTREAM)

    assert (ended.status, ended.out) == (2, "")
    assert [word for word in ("OPENAI_BASE_URL", "--stand-in") if word not in ended.err] == []


def test_installed_command_prints_same_error(some_files, run_cli):
    settings = UPSTREAM | {"BATCHLINE_MAX_IN_FLIGHT": "lots"}
    assert run_batchline("run", "good.jsonl", **settings) == run_cli("run", "good.jsonl", **settings)


def test_misspelt_variable_warning_suggests_nearest_setting(request_file):
    settings = {"BATCHLINE_MAX_IN_FLIGTH": "3", "BATCHLINE_SERVICE_HOST": "10.0.0.1", "BATCHLINE_GRACE_S": "1"}
    ended = run_batchline("validate", request_file(1), **settings)

    assert ended.status == 0
    words = "BATCHLINE_MAX_IN_FLIGTH is not a setting and has no effect; did you mean BATCHLINE_MAX_IN_FLIGHT?"
    assert ended.err == f"warning: {words}\n"


@pytest.mark.skipif(os.geteuid() == 0, reason="an administrator may read every file")
def test_file_without_read_permission_is_reported(request_file):
    path = request_file(3)
    path.chmod(0)
    assert "cannot be read: permission denied" in run_batchline("run", path).err


def test_invalid_option_stores_nothing(request_file, tmp_path, run_cli):
    run_cli("run", "--local", "--window", "9d", request_file(3))
    assert not (tmp_path / "home" / "storage").exists()


def test_validate_with_closed_pipe_prints_no_error(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("nonsense\n" * 20_000)

    shell = subprocess.run(
        ["bash", "-c", f"'{COMMAND}' validate bad.jsonl | head -n 1"],
        capture_output=True,
        text=True,
        env=command_env(),
    )

    assert (shell.stdout.count("\n"), shell.stderr) == (1, "")
