"""Prompts and answers out of bodies of every dialect, and of no dialect at all."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from batchline.web.message_text import MAX_CHARACTERS, pretty_json, request_messages, response_messages

TEXT_PART = {"type": "text", "text": "b"}
IMAGE_PART = {"type": "image_url", "image_url": {"url": "data:"}}

ASKED = {
    "chat": (
        {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]},
        [("system", "a"), ("user", "b")],
    ),
    "parts": ({"messages": [{"role": "user", "content": [TEXT_PART, IMAGE_PART]}]}, [("user", "b\n[image_url]")]),
    "completion": ({"prompt": "a"}, [("prompt", "a")]),
    "completions": ({"prompt": ["a", "b"]}, [("prompt", "a\nb")]),
    "embeddings": ({"input": ["a", "b"]}, [("input", "a\nb")]),
    "response": ({"instructions": "a", "input": "b"}, [("system", "a"), ("input", "b")]),
    "response of messages": ({"input": [{"role": "user", "content": [TEXT_PART]}]}, [("user", "b")]),
    "anthropic": (
        {"system": "a", "messages": [{"role": "user", "content": "b"}]},
        [("system", "a"), ("user", "b")],
    ),
    "tokens": ({"input": [1, 2]}, []),
    "nothing": ({}, []),
}
ANSWERED = {
    "chat": ({"choices": [{"message": {"role": "assistant", "content": "a"}}]}, [("assistant", "a")]),
    "reasoning": ({"choices": [{"message": {"reasoning_content": "a", "content": "b"}}]},
                  [("reasoning", "a"), ("assistant", "b")]),
    "refusal": ({"choices": [{"message": {"content": None, "refusal": "no"}}]}, [("refusal", "no")]),
    "tools": ({"choices": [{"message": {"tool_calls": [{"id": 1}]}}]}, [("tool calls", '[{"id": 1}]')]),
    "completion": ({"choices": [{"text": "a"}, {"text": "b"}]}, [("assistant", "a"), ("assistant", "b")]),
    "response": ({"output": [{"role": "assistant", "content": [TEXT_PART]}]}, [("assistant", "b")]),
    "anthropic": ({"content": [TEXT_PART]}, [("assistant", "b")]),
    "embeddings": ({"data": [{"embedding": [0.5] * 1536}]}, [("embedding", "1,536 numbers")]),
    "moderation": ({"results": [{"flagged": True}]}, [("moderation", "flagged")]),
    "no JSON": ("<html>", [("answer", "<html>")]),
    "nothing": (None, []),
}  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), ASKED.values(), ids=ASKED)
def test_request_messages_are_extracted_from_each_dialect(body, expected):
    assert [(said.role, said.text) for said in request_messages(body)] == expected


@pytest.mark.parametrize(("body", "expected"), ANSWERED.values(), ids=ANSWERED)
def test_response_messages_are_extracted_from_each_dialect(body, expected):
    assert [(said.role, said.text) for said in response_messages(body)] == expected


NAMES = st.sampled_from(["messages", "content", "role", "choices", "message", "text", "input", "output", "data",
                         "embedding", "results", "flagged", "prompt", "type", "tool_calls", "system"])  # fmt: skip
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
BODIES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner), max_leaves=12)


@given(BODIES)
def test_arbitrary_bodies_yield_texts_of_limited_length(body):
    for said in (*request_messages(body), *response_messages(body), pretty_json(body)):
        assert isinstance(said.text, str)
        assert len(said.text) <= MAX_CHARACTERS


def test_long_text_is_truncated_and_marked():
    (said,) = request_messages({"prompt": "x" * (MAX_CHARACTERS + 1)})
    assert (len(said.text), said.is_truncated) == (MAX_CHARACTERS, True)
    assert pretty_json({"prompt": "x" * (MAX_CHARACTERS + 1)}).is_truncated


def test_deeply_nested_json_is_truncated():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert pretty_json(deep).is_truncated
