"""Token counts of a reply, in one form for all servers.

Sources: API references of OpenAI (chat completions, responses, embeddings; prompt caching guide), Anthropic
(messages), DeepSeek (context caching), Gemini (OpenAI compatibility), xAI (reasoning). A count that is a string, a
float, negative or above 2^53 counts as not reported.
"""

from typing import Any, Final

import msgspec

MAX_COUNT: Final = 2**53
"""The largest count: every JSON parser reads integers up to it exactly."""

Number = int | float
"""The type of reported counts: with floats allowed, a server that sends some costs no second parse."""


class Usage(msgspec.Struct, frozen=True, gc=False):
    """The tokens that a reply reports; `reasoning_tokens` is None if it reports none.

    `prompt_tokens` include `cached_tokens`, read from the server's cache, and `cache_write_tokens`, written to it.
    `completion_tokens` include `reasoning_tokens`.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    reasoning_tokens: int | None
    cached_tokens: int
    cache_write_tokens: int = 0


class ReportedDetails(msgspec.Struct, gc=False):
    """The details object of the input or of the output."""

    reasoning_tokens: Number | None = None
    cached_tokens: Number | None = None
    cache_write_tokens: Number | None = None


class ReportedUsage(msgspec.Struct, gc=False):
    """The `usage` object as servers send it, under the names of all dialects."""

    prompt_tokens: Number | None = None
    completion_tokens: Number | None = None
    total_tokens: Number | None = None
    input_tokens: Number | None = None
    output_tokens: Number | None = None
    prompt_tokens_details: ReportedDetails | None = None
    completion_tokens_details: ReportedDetails | None = None
    input_tokens_details: ReportedDetails | None = None
    output_tokens_details: ReportedDetails | None = None
    cache_read_input_tokens: Number | None = None
    cache_creation_input_tokens: Number | None = None
    prompt_cache_hit_tokens: Number | None = None


def to_usage(reported: ReportedUsage) -> Usage | None:
    """Return the counts in one form, or None if there is neither an input, an output nor a total.

    A count that is missing is computed if the two others are there. Some servers leave their thinking tokens out
    of the output but not out of the total, so that the output is `total - prompt` if that is more.
    """
    prompt, completion, total = reported.prompt_tokens, reported.completion_tokens, reported.total_tokens
    cache_reads = cache_writes = 0
    # Most replies have plain counts that add up and need no repair.
    if not (
        type(prompt) is int
        and type(completion) is int
        and type(total) is int
        and prompt >= 0
        and completion >= 0
        and prompt + completion == total <= MAX_COUNT
    ):
        if (repaired := _repair(reported)) is None:
            return None
        prompt, completion, total, cache_reads, cache_writes = repaired
    reasoning = None
    if (output_details := reported.completion_tokens_details or reported.output_tokens_details) is not None:
        reasoning = _count(output_details.reasoning_tokens)
    if (input_details := reported.prompt_tokens_details or reported.input_tokens_details) is not None:
        if input_details.cached_tokens:
            cache_reads = _count(input_details.cached_tokens) or cache_reads
        if input_details.cache_write_tokens:
            cache_writes = _count(input_details.cache_write_tokens) or cache_writes
    elif reported.prompt_cache_hit_tokens:
        cache_reads = _count(reported.prompt_cache_hit_tokens) or cache_reads
    if not cache_reads and not cache_writes:
        return Usage(prompt, completion, total, reasoning, 0)
    cached = min(prompt, cache_reads)
    return Usage(prompt, completion, total, reasoning, cached, min(prompt - cached, cache_writes))


def read_usage(value: object) -> Usage | None:
    """Return the usage of a decoded `usage` member, ignoring members that are no counts; None if it has none."""
    if not isinstance(value, dict):
        return None
    reported = ReportedUsage()
    for name in ReportedUsage.__struct_fields__:
        member = value.get(name)
        if not name.endswith("_details"):
            setattr(reported, name, _count(member))
        elif isinstance(member, dict):
            counts = {detail: _count(member.get(detail)) for detail in ReportedDetails.__struct_fields__}
            setattr(reported, name, ReportedDetails(**counts))
    return to_usage(reported)


def _count(value: Any) -> int | None:
    """Return the value if it is a count, else None."""
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None


def _repair(reported: ReportedUsage) -> tuple[int, int, int, int, int] | None:
    """Return the input, output, total, cache reads and writes of counts that are missing or do not add up.

    Returns None if there is none of them.
    """
    prompt, completion = _count(reported.prompt_tokens), _count(reported.completion_tokens)
    total = _count(reported.total_tokens)
    cache_reads = cache_writes = 0
    if prompt is None and (prompt := _count(reported.input_tokens)) is not None:
        # Anthropic's `input_tokens` leave the cache's tokens out; proxies that send `prompt_tokens` have added
        # them.
        cache_reads = _count(reported.cache_read_input_tokens) or 0
        cache_writes = _count(reported.cache_creation_input_tokens) or 0
        prompt += cache_reads + cache_writes
    if completion is None:
        completion = _count(reported.output_tokens)
    if prompt is None and completion is None and total is None:
        return None
    if total is not None:
        if prompt is None and completion is not None:
            prompt = max(0, total - completion)
        elif prompt is not None:
            completion = max(completion or 0, total - prompt)
    prompt, completion = prompt or 0, completion or 0
    # The sum of more than one count may exceed the limit, the total of a broken server may be below it.
    total = min(MAX_COUNT, max(total or 0, prompt + completion))
    return prompt, completion, total, cache_reads, cache_writes
