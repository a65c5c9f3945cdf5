"""Lines that every reader splits alike: no character but the last one ends a line."""

import json
import os

from helpers.api_server import ENDPOINT, ApiServer, wait_for_end
from helpers.command_line import run_batchline
from helpers.polling import until
from helpers.request_files import chat_line

SEPARATORS = "\u2028\u2029\x85"
ODD_ID = f"a{SEPARATORS}b"
ODD_LINE = chat_line(3, "3? simulate:status=422").replace("request-3", ODD_ID)
LINES = [chat_line(1, "simulate:separators"), chat_line(2, "2?"), ODD_LINE]
CUSTOM_IDS = ["request-1", "request-2", ODD_ID]


def custom_ids(text: str) -> list[str]:
    """Return the custom_ids of the lines as `splitlines` finds them."""
    return [json.loads(line)["custom_id"] for line in text.splitlines()]


def answered(line: str) -> str:
    """Return the beginning of the answer's text."""
    return str(json.loads(line)["response"]["body"]["choices"][0]["message"]["content"])[:7]


def started(served: ApiServer, *more: str) -> str:
    """Return the id of a batch of those lines and the three above."""
    content = "\n".join([*LINES, *more]).encode()
    file = served.openai().files.create(file=("r.jsonl", content), purpose="batch")
    return served.openai().batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h").id


def test_line_separators_in_finished_batch_files_are_escaped(start_api):
    served: ApiServer = start_api()
    client, http = served.openai(), served.http()
    batch = wait_for_end(client, started(served))

    output, errors = (client.files.content(each).text for each in (batch.output_file_id, batch.error_file_id))
    results = http.get(f"/v1/batches/{batch.id}/results").text
    printed = run_batchline("batches", "results", batch.id, BATCHLINE_HOME=os.environ["BATCHLINE_HOME"]).out

    assert (custom_ids(output), custom_ids(errors)) == (CUSTOM_IDS[:2], [ODD_ID])
    assert answered(output.splitlines()[0]) == f"{SEPARATORS}the "
    assert custom_ids(results) == custom_ids(printed) == CUSTOM_IDS


def test_line_separators_in_running_batch_files_are_escaped(start_api):
    served: ApiServer = start_api(chunk_requests=3, grace_s=0.1)
    client, http = served.openai(), served.http()
    batch_id = started(served, chat_line(4, "simulate:hanging"))
    until(lambda: client.batches.retrieve(batch_id).request_counts.completed == 2)

    def output() -> str:
        found = client.batches.retrieve(batch_id).output_file_id
        return "" if found is None else client.files.content(found).text

    until(output)
    batch = client.batches.retrieve(batch_id)
    errors = client.files.content(str(batch.error_file_id)).text
    results = http.get(f"/v1/batches/{batch_id}/results").text
    client.batches.cancel(batch_id)

    assert batch.status == "in_progress"
    assert (custom_ids(output()), custom_ids(errors)) == (CUSTOM_IDS[:2], [ODD_ID])
    assert custom_ids(results) == [*CUSTOM_IDS, "request-4"]
