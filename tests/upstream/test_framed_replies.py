"""Replies with framing around their JSON, and streams of events that answer plain requests."""

import json

import pytest

from batchline.upstream.dialects.judge import judge

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
ANSWER = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
TEXT = json.dumps(ANSWER).encode()

FRAMES = {
    "byte_order_mark": b"\xef\xbb\xbf%b",
    "blank_lines": b"\n\r\n  \t\n%b\n\n",
    "comments": b": OPENROUTER PROCESSING\n\n: OPENROUTER PROCESSING\r\n\r\n%b",
    "mark_and_comment": b"\xef\xbb\xbf: hello\n%b",
    "done_after_it": b"%b\n\ndata: [DONE]\n\n",
    "done_without_space": b"%b\ndata:[DONE]",
    "one_event": b"data: %b\n\n",
    "one_event_and_done": b"data: %b\n\ndata: [DONE]\n\n",
    "named_event": b"event: message\r\nid: 1\r\ndata: %b\r\n\r\n",
    "carriage_returns": b"data: %b\r\rdata: [DONE]\r\r",
    "unfinished_event": b"data: %b",
    "event_with_comments": b": ping\n\ndata: %b\n\n: ping\n\n",
}


@pytest.mark.parametrize("name", FRAMES)
def test_json_inside_a_frame_is_kept_byte_for_byte(name: str) -> None:
    judgement = judge(CHAT, 200, FRAMES[name] % TEXT)

    assert (judgement.code, judgement.body) == (None, TEXT)
    assert judgement.usage.total_tokens == 5


def test_data_of_several_lines_is_one_event() -> None:
    lines = json.dumps(ANSWER, indent=1).replace("\n", "\ndata: ")

    assert json.loads(judge(CHAT, 200, f"data: {lines}\n\n".encode()).body) == ANSWER


def test_text_that_only_ends_like_a_frame_is_kept() -> None:
    body = json.dumps(ANSWER | {"model": "data: [DONE]"}).encode()

    assert judge(CHAT, 200, body).body == body
    assert judge(CHAT, 200, b"[DONE]").code == "invalid_response"
    assert judge(CHAT, 200, b": only a comment").code == "empty_response"
    assert judge(CHAT, 200, b"data: [DONE]\n\n").code == "empty_response"
    assert judge(CHAT, 200, b"data: null\n\n").code == "empty_response"


def stream(*events: dict, done: bool = True) -> bytes:
    lines = "".join(f"data: {json.dumps(event)}\n\n" for event in events)
    return (lines + ("data: [DONE]\n\n" if done else "")).encode()


def named(*events: dict) -> bytes:
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


def chunk(*choices: dict, **members: object) -> dict:
    return {
        "id": "c",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [*choices],
    } | members


def delta(reason: str | None = None, index: int = 0, logprobs: object = None, **members: object) -> dict:
    return {"index": index, "delta": members, "finish_reason": reason, "logprobs": logprobs}


def without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {name: without_nulls(member) for name, member in value.items() if member is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CALL = {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
OTHER_CALL = {"id": "t2", "type": "function", "function": {"name": "g", "arguments": "{}"}}

CHATS = {
    "text_and_usage": (
        [
            chunk(delta(role="assistant", content="")),
            chunk(delta(content="Ye")),
            chunk(delta(content="s.")),
            chunk(delta("stop")),
            chunk(usage=USAGE),
        ],
        ANSWER,
    ),
    "tool_calls": (
        [
            chunk(delta(role="assistant", content=None)),
            chunk(delta(tool_calls=[{"index": 0} | CALL | {"function": {"name": "f", "arguments": ""}}])),
            chunk(delta(tool_calls=[{"index": 0, "function": {"arguments": '{"a"'}}])),
            chunk(delta(tool_calls=[{"index": 0, "id": "", "function": {"name": "f", "arguments": ": 1}"}}])),
            chunk(delta(tool_calls=[{"index": 1} | OTHER_CALL])),
            chunk(delta("tool_calls")),
        ],
        {
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "tool_calls": [CALL, OTHER_CALL]},
                    "finish_reason": "tool_calls",
                }
            ]
        },
    ),
    "two_choices_reasoning_refusal_logprobs": (
        [
            chunk(delta(index=1, role="assistant", refusal="I can")),
            chunk(delta(index=0, role="assistant", reasoning_content="h")),
            chunk(delta(index=0, reasoning_content="m", logprobs={"content": [{"token": "a"}]})),
            chunk(delta(index=0, content="A", logprobs={"content": [{"token": "b"}]})),
            chunk(delta("stop", index=1, refusal="not.")),
            chunk(delta("length", index=0)),
        ],
        {
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "A", "reasoning_content": "hm"},
                    "logprobs": {"content": [{"token": "a"}, {"token": "b"}]},
                    "finish_reason": "length",
                },
                {
                    "index": 1,
                    "message": {"role": "assistant", "refusal": "I cannot."},
                    "finish_reason": "stop",
                },
            ]
        },
    ),
    "one_piece": ([chunk(delta("stop", role="assistant", content="Yes."))], {"choices": ANSWER["choices"]}),
}


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("done", [True, False])
def test_chat_stream_becomes_the_body_it_would_have_been(name: str, done: bool) -> None:
    events, expected = CHATS[name]
    judgement = judge(CHAT, 200, stream(*events, done=done))
    body = without_nulls(json.loads(judgement.body))

    assert judgement.code is None
    assert {member: body.get(member) for member in expected} == expected
    assert (body["object"], body["model"]) == ("chat.completion", "m")


def test_completion_stream_becomes_one_text() -> None:
    pieces = [
        {"choices": [{"index": 0, "text": text, "finish_reason": reason, "logprobs": {"tokens": [text]}}]}
        for text, reason in (("Ye", None), ("s.", "stop"))
    ]
    judgement = judge(COMPLETIONS, 200, stream(*pieces, {"choices": [], "usage": USAGE}))
    choice = json.loads(judgement.body)["choices"][0]

    assert (judgement.finish_reason, judgement.usage.total_tokens) == ("stop", 5)
    assert (choice["text"], choice["logprobs"]) == ("Yes.", {"tokens": ["Ye", "s."]})


def test_responses_stream_becomes_the_response_in_its_last_event() -> None:
    response = {
        "object": "response",
        "status": "completed",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "Yes."}]}],
    }
    body = named(
        {"type": "response.created", "response": {"status": "in_progress", "output": []}},
        {"type": "response.output_text.delta", "delta": "Yes."},
        {"type": "response.completed", "response": response},
    )
    judgement = judge(RESPONSES, 200, body)

    assert (judgement.code, judgement.finish_reason) == (None, "completed")
    assert judgement.body == json.dumps(response).encode()


def test_failed_responses_stream_is_judged_by_its_error() -> None:
    error = {"code": "rate_limit_exceeded", "message": "slow down"}
    body = named({"type": "response.failed", "response": {"status": "failed", "error": error, "output": []}})

    assert (judge(RESPONSES, 200, body).code, judge(RESPONSES, 200, body).message) == ("rate_limited", "slow down")


MESSAGE_EVENTS = [
    {
        "type": "message_start",
        "message": {
            "type": "message",
            "model": "m",
            "content": [],
            "stop_reason": None,
            "usage": {"input_tokens": 9, "cache_read_input_tokens": 4, "output_tokens": 1},
        },
    },
    {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "thinking", "thinking": "", "signature": ""},
    },
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "s"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "ping"},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Ye"}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "s."}},
    {"type": "content_block_stop", "index": 1},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
    },
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a"'}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ": 1}"}},
    {"type": "content_block_stop", "index": 2},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 20}},
    {"type": "message_stop"},
]


def test_messages_stream_becomes_the_message() -> None:
    judgement = judge(MESSAGES, 200, named(*MESSAGE_EVENTS))

    assert (judgement.code, judgement.finish_reason, judgement.model) == (None, "tool_use", "m")
    assert json.loads(judgement.body)["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "s"},
        {"type": "text", "text": "Yes."},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
    ]
    assert (judgement.usage.prompt_tokens, judgement.usage.completion_tokens) == (13, 20)


CUT = {
    "chat": (CHAT, stream(chunk(delta(content="Ye")), done=False)),
    "completions": (COMPLETIONS, stream({"choices": [{"text": "Ye"}]}, {"choices": [{"text": "s"}]}, done=False)),
    "responses": (RESPONSES, named({"type": "response.output_text.delta", "delta": "Ye"})),
    "messages": (MESSAGES, named(*MESSAGE_EVENTS[:9])),
    "not_json": (CHAT, b'data: {"choices"\n\n'),
    "no_object": (CHAT, b"data: 3\n\ndata: 4\n\n"),
    "pieces_that_do_not_fit": (
        CHAT,
        stream(chunk(delta(content="a")), chunk(delta("stop", content=3)) | {"choices": [3]}),
    ),
    "endpoint_without_streams": ("/v1/embeddings", stream({"data": []}, {"data": []})),
}


@pytest.mark.parametrize("name", CUT)
def test_broken_stream_is_tried_once_more(name: str) -> None:
    endpoint, body = CUT[name]
    judgement = judge(endpoint, 200, body)

    assert (judgement.code, judgement.retry) == ("invalid_response", "once")
    assert "a stream of events" in judgement.message
    assert json.loads(judgement.body) == body.decode()


ERROR_EVENTS = {
    "openai": stream(chunk(delta(content="Ye")), {"error": {"message": "died", "code": 502}}, done=False),
    "named": b'data: {"choices": []}\n\nevent: error\ndata: {"message": "died", "code": 502}\n\n',
    "anthropic": named(*MESSAGE_EVENTS[:7], {"type": "error", "error": {"type": "api_error", "message": "died"}}),
}


@pytest.mark.parametrize("name", ERROR_EVENTS)
def test_error_in_mid_stream_is_judged_by_its_code(name: str) -> None:
    judgement = judge(MESSAGES if name == "anthropic" else CHAT, 200, ERROR_EVENTS[name])

    assert (judgement.code, judgement.retry, judgement.message) == ("server_error", "as_status", "died")


def test_stream_that_lacks_a_choice_is_empty() -> None:
    assert judge(CHAT, 200, stream(chunk(delta("stop")))).code == "empty_response"
