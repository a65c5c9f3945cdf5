"""Rows of figures for the tests of what is made of them."""

from typing import Any

import hypothesis.strategies as st
import pyarrow as pa

from batchline.analytics.request_metrics import RequestMetrics, build_table
from batchline.models.usage import MAX_COUNT

MODELS = (None, "gpt-4o-mini", "claude-sonnet-4-5", "deepseek-chat", "own", "nobody's")
CODES = ("invalid_request", "rate_limited", "timeout", "batch_expired")

DONE: dict[str, Any] = {
    "ok": True,
    "model": "gpt-4o-mini",
    "status_code": 200,
    "error_code": None,
    "attempts": 1,
    "retries": "",
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "reasoning_tokens": None,
    "cached_tokens": 0,
    "cache_write_tokens": 0,
    "total_tokens": 150,
    "wasted_tokens": 0,
    "started_at": 1_790_000_000.0,
    "queued_ms": 5.0,
    "duration_ms": 400.0,
    "ttfb_ms": 100.0,
    "finish_reason": "stop",
}
FAILED = {
    **DONE,
    **dict.fromkeys([name for name in DONE if name.endswith("_tokens") and name != "wasted_tokens"]),
    "ok": False,
    "status_code": 400,
    "error_code": "invalid_request",
    "finish_reason": None,
}


def ok_row(**changes: Any) -> RequestMetrics:
    """A request that completed."""
    return RequestMetrics(**{"line": 1, "custom_id": "a", **DONE, **changes})


def failed_row(**changes: Any) -> RequestMetrics:
    """A request that failed."""
    return RequestMetrics(**{"line": 1, "custom_id": "a", **FAILED, **changes})


def make_table(rows: list[RequestMetrics]) -> pa.Table:
    return build_table(rows, offsets=[0] * len(rows), lengths=[0] * len(rows))


def make_tables(rows: list[RequestMetrics], size: int) -> list[pa.Table]:
    """The rows in tables of so many."""
    return [make_table(rows[at : at + size]) for at in range(0, len(rows), size)]


def _maybe(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | values


tokens = st.integers(0, 3_000) | st.integers(0, 400_000) | st.integers(0, MAX_COUNT - 1)
times_ms = st.floats(0, 1e6) | st.sampled_from([0.0, 0.1, 1.0, 10.0, 1e9])
starts_s = st.floats(1_700_000_000, 1_700_000_300) | st.floats(1_600_000_000, 1_800_000_000)


@st.composite
def usages(draw: st.DrawFn) -> dict[str, int | None]:
    """Tokens as a server may report them, with the bounds that reading an answer holds to."""
    prompt, completion = draw(tokens), draw(tokens)
    cached = draw(st.integers(0, prompt))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "reasoning_tokens": draw(_maybe(tokens)),
        "cached_tokens": cached,
        "cache_write_tokens": draw(st.integers(0, prompt - cached)),
        "total_tokens": draw(st.just(prompt + completion) | tokens),
    }


@st.composite
def metrics_rows(draw: st.DrawFn) -> RequestMetrics:
    """Any row that a batch may leave."""
    common = {
        "model": draw(st.sampled_from(MODELS)),
        "attempts": draw(st.integers(0, 4)),
        "retries": draw(st.sampled_from(["", "timeout", "timeout,rate_limited,timeout"])),
        "wasted_tokens": draw(st.just(0) | tokens),
        "started_at": draw(_maybe(starts_s)),
        "queued_ms": draw(_maybe(times_ms)),
        "duration_ms": draw(_maybe(times_ms)),
        "ttfb_ms": draw(_maybe(times_ms)),
    }
    if draw(st.booleans()):
        usage = draw(_maybe(usages())) or dict.fromkeys(name for name in FAILED if name.endswith("_tokens"))
        return ok_row(**{**usage, **common})
    status = draw(_maybe(st.sampled_from([400, 429, 503])))
    return failed_row(**common, error_code=draw(st.sampled_from(CODES)), status_code=status)
