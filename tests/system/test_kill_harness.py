"""A short form of `python -m bench kills`: each victim is killed a few times at random moments."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHORT = {
    "command line": ["--kills", "3", "--restores", "0", "--victim", "command line"],
    "storage": ["--kills", "2", "--restores", "0", "--victim", "storage"],
    "database": ["--kills", "2", "--restores", "0", "--victim", "database"],
    "restored database": ["--kills", "0", "--restores", "2"],
}

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


@pytest.mark.parametrize("victim", SHORT)
def test_random_kills_neither_lose_nor_duplicate_results(victim, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench", "kills", *SHORT[victim], "--keep", str(tmp_path / "kept")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr[-4_000:]
    assert victim in done.stdout
