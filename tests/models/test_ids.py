"""Identifiers."""

import re
import subprocess
import sys
import time

import pytest

from batchline.models.ids import new_batch_id, new_file_id, request_id, request_id_prefix

MAKERS = {"batch-": new_batch_id, "file-": new_file_id}


@pytest.mark.parametrize(("prefix", "new_id"), MAKERS.items(), ids=MAKERS)
def test_id_is_prefix_and_uuid_version_7(prefix, new_id):
    assert re.fullmatch(prefix + "[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", new_id())


@pytest.mark.parametrize("new_id", MAKERS.values(), ids=MAKERS)
def test_ids_are_unique_and_sorted_by_time(new_id):
    ids = [new_id() for _ in range(5_000)]
    assert ids == sorted(set(ids))


def test_id_contains_time_in_milliseconds():
    # In a process of its own: in a burst, each id takes a millisecond of its own, ahead of the clock.
    program = "from batchline.models.ids import new_batch_id; print(new_batch_id())"
    before = time.time_ns()
    made = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert before // 10**6 <= int(made.removeprefix("batch-")[:12], 16) <= time.time_ns() // 10**6


def test_request_id_is_derived_from_batch_and_line():
    batch_id = new_batch_id()
    assert request_id(batch_id, 7) == f"req-{batch_id.removeprefix('batch-')}-7"


def test_request_id_starts_with_batch_prefix():
    batch_id = new_batch_id()
    assert request_id(batch_id, 12) == request_id_prefix(batch_id) + "12"
