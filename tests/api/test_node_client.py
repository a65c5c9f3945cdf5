"""OpenAI's package for Node, unchanged but for its base URL."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers.api_server import ApiServer

HERE = Path(__file__).parent / "node"
PROGRAM = HERE / "openai.test.mjs"


@pytest.fixture
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("there is no `node`: install Node 20 or newer, then `npm ci --prefix tests/api/node`")
    if not (HERE / "node_modules" / "openai").is_dir():
        pytest.skip("OpenAI's package for Node is missing: run `npm ci --prefix tests/api/node`")
    return found


@pytest.mark.system
def test_openai_node_client_passes_its_test_program(node, start_api):
    served: ApiServer = start_api(grace_s=0.1)
    keys = {
        "KEY": served.key("alice"),
        "SMALL_KEY": served.key("bob", max_open_batches=1, max_upload_bytes=10_000),
        "MANAGER_KEY": served.key("boss", role="manager"),
    }

    done = subprocess.run(
        [node, "--test", "--test-reporter=tap", PROGRAM],
        env={**os.environ, "BASE_URL": served.url, **keys},
        capture_output=True,
        text=True,
        timeout=200,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    claims = len(re.findall(r"^test\(", PROGRAM.read_text(), re.MULTILINE))
    assert f"\n# pass {claims}\n" in done.stdout, done.stdout
