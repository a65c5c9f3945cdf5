"""Answers cut into the pieces of a stream, which must become the same answers again."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from batchline.upstream.dialects.judge import judge

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
TOKENS = st.fixed_dictionaries({"token": TEXTS, "logprob": st.floats(-9, 0)})
USAGES = st.fixed_dictionaries({"prompt_tokens": st.integers(0, 99), "completion_tokens": st.integers(0, 99)})
CALLS = st.fixed_dictionaries(
    {"id": st.uuids().map(str), "type": st.just("function")}
    | {"function": st.fixed_dictionaries({"name": st.sampled_from(["f", "g"]), "arguments": TEXTS})}
)
MESSAGES_OF_CHAT = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": TEXTS},
    optional={"refusal": TEXTS, "reasoning_content": TEXTS, "tool_calls": st.lists(CALLS, min_size=1, max_size=3)},
)
CHOICES = st.fixed_dictionaries(
    {"message": MESSAGES_OF_CHAT, "finish_reason": st.sampled_from(["stop", "length", "tool_calls"])},
    optional={"logprobs": st.fixed_dictionaries({"content": st.lists(TOKENS, min_size=1, max_size=4)})},
)
CHATS = st.fixed_dictionaries(
    {"choices": st.lists(CHOICES, min_size=1, max_size=3), "usage": USAGES, "model": TEXTS}
)
LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | TEXTS
INPUTS = st.dictionaries(TEXTS, LEAVES | st.lists(LEAVES, max_size=3), max_size=3)
BLOCKS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}),
    st.fixed_dictionaries({"type": st.just("thinking"), "thinking": TEXTS, "signature": TEXTS}),
    st.fixed_dictionaries({"type": st.just("tool_use"), "id": TEXTS, "name": TEXTS, "input": INPUTS}),
)


def cut(text: str, draw: Any) -> list[str]:
    """Cut the text into pieces."""
    places = sorted(draw(st.sets(st.integers(1, len(text)), max_size=4)))
    return [text[start:end] for start, end in pairwise([0, *places, len(text)])]


def encode(events: list[dict], draw: Any, *, named: bool = False, done: bool = False) -> bytes:
    """Write the events as servers do, with either line end and with comments between them."""
    line_end = draw(st.sampled_from(["\n", "\r\n"]))
    lines = []
    for event in events:
        if named:
            lines.append(f"event: {event['type']}")
        lines += [f"data: {json.dumps(event, ensure_ascii=draw(st.booleans()))}", ""]
        lines += draw(st.sampled_from([[], [], [": ping", ""]]))
    lines += ["data: [DONE]", ""] if done else []
    return (line_end.join(lines) + line_end).encode()


def chat_pieces(index: int, choice: dict, draw: Any) -> list[dict]:
    """Return the pieces of one choice, in the order in which a server may send them."""
    message = choice["message"]
    deltas: list[dict] = [{"role": "assistant", "content": draw(st.sampled_from(["", None]))}]
    for name in ("reasoning_content", "content", "refusal"):
        deltas += [{name: piece} for piece in cut(message[name], draw)] if name in message else []
    for number, call in enumerate(message.get("tool_calls", ())):
        function = call["function"]
        deltas.append(
            {"tool_calls": [{"index": number} | call | {"function": {"name": function["name"], "arguments": ""}}]}
        )
        pieces = cut(function["arguments"], draw)
        deltas += [{"tool_calls": [{"index": number, "function": {"arguments": piece}}]} for piece in pieces]
    choices = [{"index": index, "delta": delta, "finish_reason": None} for delta in deltas]
    tokens = choice.get("logprobs", {}).get("content", [])
    choices += [{"index": index, "delta": {}, "logprobs": {"content": [token]}} for token in tokens]
    return [*choices, {"index": index, "delta": {}, "finish_reason": choice["finish_reason"]}]


@given(answer=CHATS, data=st.data())
def test_chat(answer: dict, data: st.DataObject) -> None:
    rows = [chat_pieces(index, choice, data.draw) for index, choice in enumerate(answer["choices"])]
    pieces = []
    while any(rows):
        # Choices take turns at random, as they are generated at the same time.
        pieces.append(data.draw(st.sampled_from([row for row in rows if row])).pop(0))
    events: list[dict] = [
        {"object": "chat.completion.chunk", "model": answer["model"], "choices": [piece]} for piece in pieces
    ]
    events.append({"object": "chat.completion.chunk", "choices": [], "usage": answer["usage"]})
    judgement = judge(CHAT, 200, encode(events, data.draw, done=data.draw(st.booleans())))
    plain = {"object": "chat.completion"} | answer
    for index, choice in enumerate(plain["choices"]):
        choice["index"] = index

    assert judgement.code is None, judgement.message
    assert json.loads(judgement.body) == plain
    expected = judge(CHAT, 200, json.dumps(plain).encode())
    assert (judgement.finish_reason, judgement.mark, judgement.usage) == (
        expected.finish_reason,
        expected.mark,
        expected.usage,
    )


@given(text=TEXTS, tokens=st.lists(TEXTS, max_size=4), reason=st.sampled_from(["stop", "length"]), data=st.data())
def test_completion(text: str, tokens: list[str], reason: str, data: st.DataObject) -> None:
    pieces: list[dict] = [{"index": 0, "text": piece} for piece in cut(text, data.draw)]
    pieces += [{"index": 0, "text": "", "logprobs": {"tokens": [token]}} for token in tokens]
    pieces.append({"index": 0, "text": "", "finish_reason": reason})
    judgement = judge(COMPLETIONS, 200, encode([{"choices": [piece]} for piece in pieces], data.draw))
    choice = json.loads(judgement.body)["choices"][0]

    assert (choice["text"], choice["finish_reason"]) == (text, reason)
    assert choice.get("logprobs", {}).get("tokens", []) == tokens


def block_events(index: int, block: dict, draw: Any) -> list[dict]:
    """Return the events of one content block."""
    start, deltas = block, []
    if block["type"] == "text":
        start = block | {"text": ""}
        deltas = [{"type": "text_delta", "text": piece} for piece in cut(block["text"], draw)]
    elif block["type"] == "thinking":
        start = block | {"thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in cut(block["thinking"], draw)]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    elif block["input"]:
        start = block | {"input": {}}
        pieces = cut(json.dumps(block["input"]), draw)
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in pieces]
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


@given(blocks=st.lists(BLOCKS, min_size=1, max_size=4), data=st.data())
def test_message(blocks: list[dict], data: st.DataObject) -> None:
    usage = {"input_tokens": 9, "output_tokens": 1, "cache_read_input_tokens": None}
    events: list[dict] = [{"type": "message_start", "message": {"type": "message", "content": [], "usage": usage}}]
    for index, block in enumerate(blocks):
        events += block_events(index, block, data.draw)
    events.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 20}})
    events.append({"type": "message_stop"})
    body = json.loads(judge(MESSAGES, 200, encode(events, data.draw, named=True)).body)

    assert body["content"] == blocks
    assert (body["stop_reason"], body["usage"]) == ("end_turn", usage | {"output_tokens": 20})


@given(answer=CHATS, status=st.sampled_from(["completed", "incomplete"]), data=st.data())
def test_response(answer: dict, status: str, data: st.DataObject) -> None:
    response = {
        "object": "response",
        "status": status,
        "output": [{"type": "message", "content": answer["choices"]}],
    }
    events = [{"type": "response.created", "response": {}}, {"type": f"response.{status}", "response": response}]

    assert json.loads(judge(RESPONSES, 200, encode(events, data.draw, named=True)).body) == response
