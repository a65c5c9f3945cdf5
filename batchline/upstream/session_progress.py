"""The figures of a run that people watch."""

import msgspec


class SessionProgress(msgspec.Struct, frozen=True):
    """The progress of a run."""

    completed: int
    failed: int
    in_flight: int
    attempts: int
    retried: int
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    limit: int
    ceiling: int
    paused: str | None
