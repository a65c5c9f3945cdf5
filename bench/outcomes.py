"""Compares the judgements of made-up 2xx bodies with an oracle, and measures the time of a judgement.

The first is also run by `tests/system/test_reply_judgements.py`, for fewer bodies.
"""

from __future__ import annotations

import json
import sys
import time
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from batchline.upstream.dialects.judge import Expectation, judge
from bench.figures import Row
from bench.reply_grammar import CHAT, Reply, make_reply
from bench.reply_oracle import Expected, expect

if TYPE_CHECKING:
    from collections.abc import Iterator

    from batchline.models.outcomes import Judgement
    from bench.measuring import World

ANSWER = {
    "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
    "object": "chat.completion",
    "created": 1_741_569_952,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "x" * 420, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 12,
        "completion_tokens": 100,
        "total_tokens": 112,
        "prompt_tokens_details": {"cached_tokens": 0},
    },
}
"""A chat answer of 800 bytes."""


class Difference(NamedTuple):
    """A body that is judged otherwise than the oracle says."""

    seed: int
    reply: Reply
    expected: Expected
    judged: Expected


class Comparison(NamedTuple):
    """The number of bodies that were compared, of those that count as successes, and the differences."""

    bodies: int
    successes: int
    differences: list[Difference]


def compare(bodies: int, *, first_seed: int = 0) -> Comparison:
    """Judge so many bodies, each made from a seed of its own."""
    random = Random()
    successes, differences = 0, []
    for seed in range(first_seed, first_seed + bodies):
        random.seed(seed)
        reply = make_reply(random)
        judgement = judge(reply.endpoint, 200, reply.body, Expectation(reply.inputs))
        expected, judged = expect(reply.endpoint, reply.inputs, reply.text), parts_of(judgement)
        successes += judged.code is None
        is_same_body = judged.code is not None or seed % 16 or json.loads(judgement.body) == json.loads(reply.text)
        if judged != expected or not is_same_body:
            differences.append(Difference(seed, reply, expected, judged))
    return Comparison(bodies, successes, differences)


def parts_of(judgement: Judgement) -> Expected:
    """Return what the oracle also says."""
    usage = judgement.usage
    return Expected(
        judgement.code,
        judgement.retry,
        judgement.mark,
        judgement.finish_reason,
        judgement.out_reason,
        None if usage is None else (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens),
    )


def judgements(world: World) -> Iterator[Row]:
    """A million made-up 2xx bodies against the oracle, and the time of one judgement."""
    found = compare(world.count(1_000_000))
    for difference in found.differences[:10]:
        print(difference, file=sys.stderr)
    is_false = [difference.expected.code is not None for difference in found.differences if is_turned(difference)]
    yield Row("2xx bodies judged, of which successes, %", 100 * found.successes / found.bodies)
    yield Row("false successes", sum(is_false), most=0)
    yield Row("false failures", len(is_false) - sum(is_false), most=0)
    yield Row("other differences from the oracle", len(found.differences) - len(is_false), most=0)
    yield Row("judgement of a chat answer of 800 bytes", judge_us(), most=10, unit=" µs")


def is_turned(difference: Difference) -> bool:
    """Return True if a success is judged a failure or the reverse."""
    return (difference.expected.code is None) != (difference.judged.code is None)


def judge_us(rounds: int = 30, repeats: int = 2_000) -> float:
    """Return the microseconds of a judgement: the best of several rounds."""
    body = msgspec.json.encode(ANSWER)
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(repeats):
            judge(CHAT, 200, body)
        best = min(best, time.perf_counter() - start)
    return best / repeats * 1e6
