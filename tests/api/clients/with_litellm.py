"""Makes all of litellm's calls for files and batches, and prints what came of them.

Arguments: the base URL, a key, and `expire` if a batch is to be waited for until its window closes.
"""

import json
import sys
import time
from collections.abc import Callable

import litellm

ENDPOINT = "/v1/chat/completions"
OVER = {"completed", "failed", "expired", "cancelled"}


def line(number: int, prompt: str) -> str:
    """A chat request."""
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": prompt}]}
    return json.dumps({"custom_id": f"r-{number}", "method": "POST", "url": ENDPOINT, "body": body}) + "\n"


def raised(ask: Callable[[], object]) -> str:
    """The name of what it raises."""
    try:
        return f"nothing, but {ask()}"
    except Exception as error:  # noqa: BLE001 - whatever litellm makes of it is to be told
        return type(error).__name__


def work(*, expire: bool, **server: str) -> dict[str, object]:
    """Return the result of each call."""

    def created(prompts: list[str]) -> tuple[str, str]:
        content = "".join(line(number, prompt) for number, prompt in enumerate(prompts))
        file = litellm.create_file(file=("requests.jsonl", content.encode()), purpose="batch", **server)
        batch = litellm.create_batch(
            completion_window="24h", endpoint=ENDPOINT, input_file_id=file.id, metadata={"a": "b"}, **server
        )
        return file.id, batch.id

    def over(batch_id: str) -> litellm.LiteLLMBatch:
        ends = time.monotonic() + 60
        while (batch := litellm.retrieve_batch(batch_id=batch_id, **server)).status not in OVER:
            assert time.monotonic() < ends, batch
            time.sleep(0.05)
        return batch

    def custom_ids(file_id: str) -> list[str]:
        text = litellm.file_content(file_id=file_id, **server).text
        return [json.loads(each)["custom_id"] for each in text.splitlines()]

    expiring = created(["3?", "simulate:hanging"])[1] if expire else None
    file_id, first = created(["0 simulate:status=400", "1?", "2 simulate:separators"])
    batch = over(first)
    results = [
        litellm.file_retrieve(file_id=each, **server) for each in (batch.output_file_id, batch.error_file_id)
    ]
    last = litellm.file_content(file_id=batch.output_file_id, **server).text.splitlines()[-1]
    _, second = created(["simulate:hanging"])
    cancelling = litellm.cancel_batch(batch_id=second, **server)
    listed = litellm.list_batches(limit=1, **server)
    return {
        "file": litellm.file_retrieve(file_id=file_id, **server).filename,
        "status": batch.status,
        "counts": batch.request_counts.model_dump(),
        "metadata": batch.metadata,
        "output": custom_ids(batch.output_file_id),
        "errors": custom_ids(batch.error_file_id),
        "purposes": [each.purpose for each in results],
        "separators": json.loads(last)["response"]["body"]["choices"][0]["message"]["content"][:7],
        "cancelling": cancelling.status,
        "cancelled": over(second).status,
        "first page": [each.id == second for each in listed.data],
        "all pages": [each.id for each in listed][:2] == [second, first],
        "expired": [over(expiring).status, over(expiring).request_counts.model_dump()] if expiring else None,
        "files": len(list(litellm.file_list(**server))),
        "deleted": litellm.file_delete(file_id=file_id, **server).deleted,
        "raised": [
            raised(lambda: litellm.cancel_batch(batch_id=first, **server)),
            raised(lambda: litellm.retrieve_batch(batch_id="batch-none", **server)),
            raised(lambda: litellm.file_content(file_id=file_id, **server)),
            raised(lambda: litellm.list_batches(**{**server, "api_key": "bl-none"})),
        ],
    }


if __name__ == "__main__":
    url, key, *more = sys.argv[1:]
    found = work(expire="expire" in more, custom_llm_provider="openai", api_base=url, api_key=key)
    sys.stdout.write("\n" + json.dumps(found))
