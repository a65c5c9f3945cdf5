"""Input files for batches, and what their files hold."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from batchline import Batchline


def chat_line(number: int, prompt: str) -> str:
    """A valid chat request; its prompt may order a fault of the simulator (`simulate:status=400`)."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": prompt}]}
    request = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}
    return json.dumps(request)


def write_requests(
    path: Path, count: int, *, prompt: Callable[[int], str] = "Question {}?".format, blank_every: int = 0
) -> Path:
    """A file of so many chat requests, with a blank line behind every so many."""
    with path.open("w") as file:
        for number in range(count):
            file.write(chat_line(number, prompt(number)) + "\n")
            if blank_every and number % blank_every == 0:
                file.write("\n")
    return path


def read_lines(client: Batchline, file_id: str | None) -> list[dict[str, object]]:
    """The lines of that file; none where there is no file."""
    if file_id is None:
        return []
    return [json.loads(line) for line in b"".join(client.files.content(file_id)).splitlines()]


def request_numbers(lines: Iterable[dict[str, object]]) -> list[int]:
    """The requests' numbers, as their custom_ids tell."""
    return [int(str(line["custom_id"]).rpartition("-")[2]) for line in lines]
