"""Results hold whatever bodies there are, and whatever a spreadsheet would make of a custom_id."""

import csv
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from helpers.scripted_server import Action, Received, ScriptedServer, reply

from batchline import Batchline
from batchline.cli.results import _write_results

DIGITS = "9" * 5_000
ANSWERS = {
    "deep": '{"choices":' + "[" * 1_000 + "]" * 1_000 + "}",
    "digits": f'{{"choices":[],"x":{DIGITS}}}',
    "plain": '{"choices":[{"message":{"content":"yes"}}],"x":1.50}',
}
CUSTOM_IDS = ("=1+1", "@x", "-2", "+3.5", "-x\x1b[31m", "plain")


def answer(request: Received) -> Action:
    """Answer as the prompt says."""
    body = json.loads(request.body, parse_int=str)
    return reply(body=ANSWERS[body["messages"][0]["content"]].encode())


@pytest.fixture
def client(make_services: Callable) -> Iterator[Batchline]:
    server = ScriptedServer(answer).start()
    services = make_services(f"{server.base_url}/v1", upstream={"max_attempts": 1})
    with Batchline(services=services) as client:
        yield client
    server.stop()


def ended(client: Batchline, path: Path, requests: list[tuple[str, str, str]]) -> str:
    """The id of a batch that is over, of requests of those custom_ids, answers and more members of the body."""
    with path.open("w") as file:
        for custom_id, answer, more in requests:
            body = f'{{"model":"m","messages":[{{"role":"user","content":"{answer}"}}]{more}}}'
            name = json.dumps(custom_id)
            line = f'{{"custom_id":{name},"method":"POST","url":"/v1/chat/completions","body":{body}}}\n'
            file.write(line)
    batch = client.batches.create(input_file_id=client.files.create(file=path).id)
    client.batches.wait(batch.id, timeout_s=60)
    return batch.id


def test_results_with_unusual_body_do_not_affect_other_results(client, tmp_path):
    odd = [
        ("a", "deep", ""),
        ("b", "digits", ""),
        ("c", "plain", f',"n":{DIGITS}'),
        ("d", "plain", ',"x":"\\ud800"'),
    ]
    batch_id = ended(client, tmp_path / "r.jsonl", odd)

    lines = [each.to_json() for each in client.batches.raw_results(batch_id)]
    items = list(client.batches.results(batch_id))

    found = [json.loads(line, parse_int=str) for line in lines]
    assert [item["status"] for item in found] == ["failed", "failed", "completed", "completed"]
    assert all(item["error"].startswith("invalid_response: the upstream answered 200 with") for item in found[:2])
    assert [item["response_body"] for item in found[:2]] == [ANSWERS["deep"], ANSWERS["digits"]]
    assert found[2]["input_body"]["n"] == DIGITS
    assert all(ANSWERS["plain"].encode() in line for line in lines[2:])
    assert rb'"x":"\ud800"' in lines[3]
    assert [item.status for item in items] == ["failed", "failed", "completed", "completed"]
    assert items[2].response_body["x"] == 1.5


def test_csv_and_parquet_export_accepts_any_body(client, tmp_path):
    batch_id = ended(client, tmp_path / "r.jsonl", [("a", "deep", ""), ("b", "plain", f',"n":{DIGITS}')])

    for kind in ("csv", "parquet"):
        path = tmp_path / f"r.{kind}"
        with path.open("wb") as file:
            assert _write_results(client.batches.raw_results(batch_id), kind, file) == 2
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    table = pq.read_table(tmp_path / "r.parquet").to_pylist()

    assert [row["response_body"] for row in rows] == [json.dumps(ANSWERS["deep"]), ANSWERS["plain"]]
    assert [row["response_body"] for row in table] == [row["response_body"] for row in rows]
    assert DIGITS in rows[1]["input_body"]


def test_csv_export_escapes_formulas_and_control_characters(client, tmp_path):
    batch_id = ended(client, tmp_path / "r.jsonl", [(each, "plain", "") for each in CUSTOM_IDS])
    file = io.BytesIO()

    _write_results(client.batches.raw_results(batch_id), "csv", file)

    found = [row["custom_id"] for row in csv.DictReader(io.StringIO(file.getvalue().decode(), newline=""))]
    assert found == ["'=1+1", "'@x", "-2", "+3.5", "'-x\\x1b[31m", "plain"]
