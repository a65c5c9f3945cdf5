"""Programs that others wrote for OpenAI's batches, unchanged but for their base URL.

Each has dependencies of its own and runs in an environment of its own, which `.ci/run` makes.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest
from helpers.api_server import ApiServer

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
HOW = "run `.ci/clients clients`"

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"autobatcher and litellm are missing: {HOW}"),
]


def ran(program: str, *arguments: str) -> dict[str, object]:
    """Return what the program prints."""
    done = subprocess.run(
        [PYTHON, Path(__file__).parent / "clients" / program, *arguments],
        # litellm fetches a list of prices from the internet where it is not told otherwise.
        env={**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_autobatcher_receives_results_while_batch_runs(start_api):
    """autobatcher reads the output file by lines while the batch runs, and never the error file."""
    served: ApiServer = start_api(simulator={"latency_s": 0.02}, upstream={"max_in_flight": 8}, chunk_requests=20)

    seen = ran("with_autobatcher.py", served.url, served.key("alice"), "200")

    assert seen["refused"] == list(range(0, 200, 10))
    assert (seen["answered"], seen["vectors"], seen["response"]) == (180, 2, True)
    assert seen["events"]["batch_submitted"] == 3
    (chats,) = served.client.batches.list(search="autobatcher").data[2:]
    assert (chats.endpoint, chats.status) == ("/v1/chat/completions", "completed")


def test_litellm_file_and_batch_operations_work(start_api):
    served: ApiServer = start_api(grace_s=0.1)

    seen = ran("with_litellm.py", served.url, served.key("alice"))

    assert seen == {
        "file": "requests.jsonl",
        "status": "completed",
        "counts": {"total": 3, "completed": 2, "failed": 1},
        "metadata": {"a": "b"},
        "output": ["r-1", "r-2"],
        "errors": ["r-0"],
        "purposes": ["batch_output", "batch_output"],
        "separators": "\u2028\u2029\x85the ",
        "cancelling": "cancelling",
        "cancelled": "cancelled",
        "first page": [True],
        "all pages": True,
        "expired": None,
        "files": 5,  # of each batch the input and the errors, and the output of the first
        "deleted": True,
        "raised": ["ConflictError", "NotFoundError", "NotFoundError", "AuthenticationError"],
    }
