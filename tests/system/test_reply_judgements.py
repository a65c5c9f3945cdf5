"""Judgements of 20,000 made-up 2xx bodies, against an oracle that shares no code with them."""

from collections import Counter
from random import Random

from msgspec import structs

from batchline.upstream.dialects.judge import Expectation, judge_fully, judge_quickly
from bench.outcomes import compare
from bench.reply_grammar import make_reply
from bench.reply_oracle import expect

BODIES = 20_000


def test_every_body_is_judged_as_the_oracle_says():
    found = compare(BODIES)

    assert found.differences == []
    assert 0.3 * BODIES < found.successes < 0.7 * BODIES


def test_fast_and_full_judgement_are_equal():
    quick_ones = 0
    for seed in range(BODIES):
        reply = make_reply(Random(seed))
        quick = judge_quickly(reply.endpoint, 200, reply.body, Expectation(reply.inputs))
        if quick is not None:
            quick_ones += 1
            full = judge_fully(reply.endpoint, 200, reply.body, Expectation(reply.inputs))
            assert structs.replace(quick, body=quick.body.strip()) == full, seed

    assert quick_ones > BODIES / 10


def test_grammar_makes_every_kind_of_outcome():
    kinds: Counter[tuple[str | None, ...]] = Counter()
    for seed in range(BODIES):
        reply = make_reply(Random(seed))
        expected = expect(reply.endpoint, reply.inputs, reply.text)
        kinds[expected.code, expected.retry, expected.mark] += 1

    rare = {kind for kind, count in kinds.items() if count < 20}
    assert rare == set()
    assert {code for code, _, _ in kinds} == {
        None,
        "empty_response",
        "invalid_response",
        "content_filter",
        "context_length_exceeded",
        "invalid_request",
        "rate_limited",
        "server_error",
    }
    assert (None, None, "truncated") in kinds
    assert ("invalid_request", "upstream_out", None) in kinds
