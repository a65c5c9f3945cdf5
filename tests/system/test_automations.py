"""Automations on events: notifications, chained batches, synced folders; and secrets in logs."""

import json
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from helpers.prefect_stack import PrefectStack, children_of, kill_tree, until, write_requests
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.settings import PREFECT_API_URL, temporary_settings

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

ARRIVED = """
import sys
from prefect.events import emit_event
emit_event("batchline.file-arrived", {"prefect.resource.id": "jobs"}, payload={"uri": sys.argv[1]})
"""


class Mailbox(ThreadingHTTPServer):
    """Received requests by path: JSON and content type."""

    def __init__(self) -> None:
        self.got: dict[str, list[tuple[str | None, Any]]] = {"/hook": [], "/chat": []}
        super().__init__(("127.0.0.1", 0), MailHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def texts(self, path: str) -> str:
        return json.dumps(self.got[path])


class MailHandler(BaseHTTPRequestHandler):
    server: Mailbox

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got[self.path].append((self.headers["content-type"], json.loads(body)))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Mailbox]:
    with Mailbox() as box:
        threading.Thread(target=box.serve_forever, daemon=True).start()
        yield box
        box.shutdown()


@pytest.fixture(scope="module", autouse=True)
def worker(stack: PrefectStack) -> Iterator[subprocess.Popen[bytes]]:
    process = stack.worker()
    yield process
    kill_tree(process)


def test_automations_notify_each_end_and_start_next_batch(stack, mailbox):
    with temporary_settings({PREFECT_API_URL: stack.api}):
        CustomWebhookNotificationBlock(
            name="ops", url=f"{mailbox.url}/chat", json_data={"subject": "{{subject}}", "body": "{{body}}"}
        ).save("ops")
    first = write_requests(stack.inbox / 'a "first".jsonl', 30)
    second = write_requests(stack.inbox / "second.jsonl", 7, prompt="simulate:status=400")
    stack.run_command(
        "batchline", "prefect", "setup", "--notify", f"{mailbox.url}/hook", "--notify", "custom-webhook/ops"
    )
    stack.run_command("batchline", "prefect", "chain", first.name, str(second))

    bad = stack.inbox / "bad.jsonl"
    bad.write_text("nonsense\n{}\n")

    run = stack.start(input_uri=str(first))
    stack.start(input_uri=str(bad))

    names = ("second.jsonl", "bad.jsonl")
    until(lambda: all(name in mailbox.texts(path) for path in ("/hook", "/chat") for name in names))
    told = {post["batch"]["file"]: (kind, post) for kind, post in mailbox.got["/hook"]}
    kind, post = told[first.name]
    assert (kind, post["event"], post["batch"]["completed"]) == ("application/json", "batch.completed", 30)
    assert post["text"] == 'a "first".jsonl completed: 30 ok, 0 failed'
    text = told["bad.jsonl"][1]["text"]
    assert text.startswith("bad.jsonl failed: line 1: ")
    assert text.endswith("(and 4 more); nothing was sent")
    assert post["url"].endswith(f"/runs/flow-run/{run}")
    assert told["second.jsonl"][1]["batch"]["failures"] == {"invalid_request": 7}
    chat = {post["subject"]: post["body"] for _, post in mailbox.got["/chat"]}
    (subject,) = (each for each in chat if each.startswith("second.jsonl "))
    assert subject.startswith("second.jsonl failed: every request failed (invalid_request 7)")
    assert told["second.jsonl"][1]["batch"]["batch_id"] in chat[subject]


def test_log_of_failed_batch_has_message_without_traceback(stack, worker):
    run = stack.start(
        input_uri=str(write_requests(stack.inbox / "refused.jsonl", 3, prompt="simulate:status=400"))
    )
    outside = stack.start(input_uri="/etc/passwd")

    until(lambda: {stack.runs()[each]["state_type"] for each in (run, outside)} == {"FAILED"})
    until(lambda: not children_of(worker.pid))

    log = stack.log.read_text()
    assert "Finished in state Failed('failed: every request failed (invalid_request 3)" in log
    assert "not below an allowed root" in log
    assert "Traceback" not in log


def test_file_arrival_event_starts_batch_without_schedule(stack):
    folder = stack.inbox / "arrivals"
    folder.mkdir()
    write_requests(folder / "arrived.jsonl", 5)

    stack.run_command("python", "-c", ARRIVED, str(folder))

    with stack.client() as client:
        (batch,) = until(lambda: client.batches.list(search="arrived.jsonl").data)
        ended = client.batches.wait(batch.id, timeout_s=120)
    assert (ended.status, ended.dwext.source, ended.dwext.source_file) == ("completed", "sync", "arrived.jsonl")


def test_automations_notify_quarantined_file(stack, mailbox):
    folder = stack.inbox / "watched" / "inbox"
    folder.mkdir(parents=True)
    (folder / "bad.jsonl").write_text("no json\n")
    stack.run_command("batchline", "prefect", "setup", "--notify", f"{mailbox.url}/hook")

    stack.run_command("python", "-c", ARRIVED, str(folder))

    until(lambda: "batchline.file-quarantined" in mailbox.texts("/hook"))
    [post] = [post for _, post in mailbox.got["/hook"] if post["event"] == "batchline.file-quarantined"]
    assert post["file"]["place"] == str(folder.parent / "quarantine" / "bad.jsonl")
    assert post["text"].startswith(f"{folder / 'bad.jsonl'}: quarantined, 1 error, first line 1")
