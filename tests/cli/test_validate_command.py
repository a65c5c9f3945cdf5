"""`batchline validate`: every error, for people and for programs."""

import json
import os
from pathlib import Path

import pytest
from helpers.command_line import Terminal, run_batchline

from batchline.simulate import Simulator

TO = "\N{EN DASH}"
BAD = [
    '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": []}}',
    "",
    "nonsense",
    '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}',
    '{"custom_id": "b", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m"}}',
    '{"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {}}',
    '{"custom_id": "d\\ud800", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}',
]
FOUND = [
    ("invalid_json_line", 3),
    ("duplicate_custom_id", 4),
    ("mismatched_url", 5),
    ("missing_required_parameter", 6),
    ("invalid_value", 7),
]


@pytest.fixture
def bad_file(tmp_path: Path) -> Path:
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join(BAD))
    return path


def test_validate_of_valid_file_prints_one_summary_line(request_file, run_cli):
    path = request_file(12)
    ended = run_cli("validate", path)

    assert ended.status == 0
    assert ended.out.startswith(f"{path}: 12 requests to /v1/chat/completions for gpt-4o-mini, ")
    assert "input tokens (a rough estimate)" in ended.out
    assert (ended.out.count("\n"), ended.err) == (1, "")


def test_validate_prints_each_error_with_line_number(bad_file, run_cli):
    ended = run_cli("validate", bad_file)

    *errors, last = ended.out.splitlines()
    assert ended.status == 2
    assert [(line.split(": ")[0], line.rpartition("(")[2].rstrip(")")) for line in errors] == [
        (f"{bad_file}:{line}", code) for code, line in FOUND
    ]
    assert last == f"{bad_file}: 5 errors; no request would be sent"


def test_validate_json_errors_have_batch_api_fields(bad_file, run_cli):
    ended = run_cli("validate", "--json", bad_file)

    answer = json.loads(ended.out)
    assert ended.status == 2
    assert list(answer) == ["data"]
    assert [(error["code"], error["line"]) for error in answer["data"]] == FOUND
    assert all(error.keys() <= {"code", "line", "message", "param"} for error in answer["data"])
    assert [error["param"] for error in answer["data"] if error["code"].startswith("missing")] == ["body.model"]


def test_validate_json_of_valid_file_has_no_errors(request_file, run_cli):
    ended = run_cli("validate", "--json", request_file(3))
    assert (ended.status, json.loads(ended.out)) == (0, {"data": []})


def test_validate_groups_10000_equal_errors_but_json_lists_each(tmp_path, run_cli):
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(f"words {number}\n" for number in range(10_000)))

    told = run_cli("validate", path)
    shown = run_cli("validate", "--json", path)

    message = "not JSON: invalid syntax at byte 0 of the line (invalid_json_line)"
    assert told.out.splitlines() == [
        f"{path}: lines 1{TO}10,000: {message}",
        f"{path}: 10,000 errors; no request would be sent",
    ]
    assert [error["line"] for error in json.loads(shown.out)["data"]] == [*range(1, 10_001)]


def test_validate_groups_equal_errors_into_line_ranges(tmp_path, run_cli):
    path = tmp_path / "bad.jsonl"
    without = BAD[0].replace('"method": "POST", ', "")
    lines = [without.replace('"a"', f'"{number}"') for number in range(9)]
    path.write_text("\n".join([*lines[:4], "", *lines[4:6], BAD[0], lines[6], "words"]))

    ended = run_cli("validate", path)

    assert [line.removeprefix(str(path)) for line in ended.out.splitlines()[:2]] == [
        f": lines 1{TO}4, 6{TO}7, 9: method is missing (missing_required_parameter)",
        ":10: not JSON: invalid syntax at byte 0 of the line (invalid_json_line)",
    ]


def test_validate_groups_many_errors_that_differ_only_in_names(tmp_path, run_cli):
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(BAD[0].replace('"a"', f'"{number % 500}"') + "\n" for number in range(1_000)))

    ended = run_cli("validate", path)

    assert ended.out.splitlines()[0] == (
        f"{path}: lines 501{TO}1,000: the first: custom_id '0' is already used in line 1; make each one unique "
        "(duplicate_custom_id)"
    )
    assert ended.out.count("\n") == 2


@pytest.mark.parametrize("verb", [("validate",), ("run", "--local", "--stand-in")], ids=["validate", "run"])
def test_non_utf8_filename_is_accepted(verb, request_file, run_cli):
    path = os.fsdecode(bytes(request_file(3)).replace(b".jsonl", b"-\xe9.jsonl"))
    request_file(3).rename(path)

    ended = run_cli(*verb, path)

    assert ended.status == 0
    assert "Traceback" not in ended.err


def test_validate_on_terminal_shows_line_numbers(bad_file):
    with Terminal("validate", bad_file.name, columns=80) as terminal:
        status = terminal.wait()
    assert status == 2
    assert [line for _, line in FOUND if f"bad.jsonl:{line}: " not in terminal.text] == []


def test_validate_with_endpoint_option_reports_mismatched_urls(bad_file, run_cli):
    ended = run_cli("validate", "--json", "--endpoint", "/v1/embeddings", bad_file)
    urls = [error["line"] for error in json.loads(ended.out)["data"] if error["code"] == "mismatched_url"]
    assert urls == [1, 4, 6, 7]


def test_validate_of_empty_file_reports_error(tmp_path, run_cli):
    (tmp_path / "empty.jsonl").touch()
    ended = run_cli("validate", "empty.jsonl")
    assert (ended.status, "(empty_file)" in ended.out) == (2, True)


def test_validate_reports_model_without_upstream(start_simulator, request_file, run_cli):
    upstream: Simulator = start_simulator()
    Path("batchline.toml").write_text(f'[[upstreams]]\nbase_url = "{upstream.base_url}"\nmodels = ["other"]\n')

    ended = run_cli("validate", request_file(2))

    assert ended.status == 2
    assert f"lines 1{TO}2: no upstream serves model 'gpt-4o-mini' (unknown_model)" in ended.out
    assert upstream.counters()["received"] == 0


def test_validate_escapes_characters_outside_terminal_encoding(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(BAD[0].replace('"a"', '"ü✓"') + "\n" + BAD[0].replace('"a"', '"ü✓"') + "\n")

    ended = run_batchline("validate", path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")

    assert (ended.status, ended.err) == (2, "")
    assert r"\xfc\u2713" in ended.out
