"""Any files in any order, with passes that fail anywhere: no file is lost, and none is picked up twice."""

import time
from collections import Counter

from helpers.watched_folders import BAD, LocalFolder, read_inputs, request_lines, sync_only
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sync_pass_races import assert_sound, failing_services

from batchline.models.errors import StorageFault

NAMES = ("a.jsonl", "b.jsonl", "a.JSONL")

puts = st.tuples(st.just("put"), st.sampled_from(NAMES), st.booleans())
rounds = st.tuples(st.just("round"), st.sampled_from(["keep", "move", "delete"]), st.none() | st.integers(0, 9))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(puts | puts | rounds, max_size=14))
def test_interrupted_sync_passes_pick_up_each_file_once(acts, make_services, tmp_path):
    home = tmp_path / str(time.monotonic_ns())
    folder = LocalFolder(home / "data" / "inbox")
    services = make_services("http://localhost:9", home=home, source_still_s=0, **folder.settings)
    valid, last = set[bytes](), dict[str, bytes]()
    for number, (act, what, how) in enumerate(acts):
        if act == "put":
            text = request_lines(1, f"Number {number}") + (b"" if how else BAD)
            folder.put(what, text)
            last[what] = text
            valid |= {text} if how else set()
        else:
            try:
                sync_only(
                    services if how is None else failing_services(services, int(str(how))), folder, after=what
                )
            except StorageFault:
                assert how is not None
    sync_only(services, folder, after="move")

    taken = Counter(read_inputs(services))
    assert set(taken.values()) <= {1}
    assert taken.keys() <= valid
    assert taken.keys() >= {text for text in last.values() if text in valid}
    assert folder.names() == []
    assert_sound(services)
