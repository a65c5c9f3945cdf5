"""Memory stays bounded whatever the lines' size."""

import json
from pathlib import Path

import pytest
from helpers.batch_assertions import check_results, new_batch
from helpers.runner_process import RUN_LOCAL

from batchline.models.status import BatchStatus

MOST_MIB = 400
LINES = 30
LINE_BYTES = 10_000_000

# Not `getrusage`: its figure starts from what the parent had when it forked, which may be more.
TELLING_ITS_PEAK = (
    RUN_LOCAL
    + """
with open("/proc/self/status") as status:
    print(next(line for line in status if line.startswith("VmHWM")))
"""
)


@pytest.fixture
def long_lines(tmp_path: Path) -> Path:
    """A file of lines as long as the default limit allows."""
    path = tmp_path / "long-lines.jsonl"
    with path.open("w") as file:
        for number in range(LINES):
            body = {"model": "m", "messages": [{"role": "user", "content": "%s"}]}
            line = {
                "custom_id": f"request-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            text = json.dumps(line)
            file.write(text.replace("%s", f"{number} ".ljust(LINE_BYTES - len(text) + 2, "x")) + "\n")
    return path


@pytest.mark.system
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell a process's peak")
def test_batch_of_ten_megabyte_lines_stays_below_400_mib(long_lines, start_simulator, make_services, start_runner):
    services = make_services(start_simulator().base_url)
    batch = new_batch(services, long_lines)
    long_lines.unlink()

    status, told = start_runner(services, batch, program=TELLING_ITS_PEAK).wait()

    assert status == 0
    ended = services.records.get_batch(batch.id)
    assert ended.status is BatchStatus.COMPLETED
    check_results(services, ended, LINES)
    assert int(told.split()[1]) / 1024 < MOST_MIB
