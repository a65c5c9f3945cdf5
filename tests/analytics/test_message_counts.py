"""Counts of error messages in bounded memory."""

from batchline.analytics.failure_messages import KEPT_PER_CODE, MAX_KINDS, MessageCounts
from batchline.models.analytics import FailureMessage

WORDS = [f"{chr(97 + first)}{chr(97 + second)}" for first in range(26) for second in range(26)]


def test_frequent_message_is_found_among_any_number_of_others():
    counts = MessageCounts()
    others = (f"{first} {second}" for first in WORDS for second in WORDS[:100])
    for number, other in enumerate(others):
        counts.add("server_error", other)
        if number > 60_000:
            counts.add("server_error", "out of memory")
    added = 7_599

    assert len(counts._counts) <= MAX_KINDS
    found = counts.most_frequent()["server_error"]
    assert found.message == "out of memory"
    assert added - (67_600 + added) / MAX_KINDS <= found.count <= added


def test_counts_of_parts_are_added_up_by_code():
    parts = [MessageCounts() for _ in range(3)]
    for number, part in enumerate(parts):
        part.add("timeout", "no answer within 30 s", number + 1)
        part.add("invalid_request", f"only in {WORDS[number]}")
    total = MessageCounts()
    for part in parts:
        total.add_stored(part.to_stored())

    found = total.most_frequent()
    assert found["timeout"] == FailureMessage(message="no answer within 30 s", count=6)
    assert found["invalid_request"].count == 1


def test_parts_keep_only_the_most_frequent_messages():
    counts = MessageCounts()
    for number, word in enumerate(WORDS):
        counts.add("server_error", word, number + 1)

    kept = counts.to_stored()["server_error"]
    assert [count for _, count in kept] == [len(WORDS) - number for number in range(KEPT_PER_CODE)]


def test_messages_of_the_end_of_a_batch_are_ignored():
    counts = MessageCounts()
    for code in ("batch_expired", "batch_cancelled", "batch_failed"):
        counts.add(code, "the batch is over")
    counts.add("timeout", "")

    assert counts.most_frequent() == {}
