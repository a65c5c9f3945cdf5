"""Formats text and numbers of the report page."""

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from itertools import accumulate
from typing import Any, Final

from batchline.models import formatting
from batchline.models.analytics import BatchReport
from batchline.models.error_codes import ErrorCode
from batchline.models.outcomes import Mark
from batchline.storage.records.store import BatchRecord

MULTIPLIER: Final = "\u202f\N{MULTIPLICATION SIGN}\u202f"
"""Between narrow no-break spaces."""

ERROR_MEANINGS: Final[Mapping[str, str]] = {
    ErrorCode.INVALID_REQUEST: "the server refused the request",
    ErrorCode.RATE_LIMITED: "too many requests, even at the last attempt",
    ErrorCode.SERVER_ERROR: "the server failed, even at the last attempt",
    ErrorCode.TIMEOUT: "no answer in time, even at the last attempt",
    ErrorCode.CONNECTION_ERROR: "the connection failed, even at the last attempt",
    ErrorCode.INVALID_RESPONSE: "not a valid response, even at the last attempt",
    ErrorCode.BATCH_EXPIRED: "not answered when the window closed",
    ErrorCode.BATCH_CANCELLED: "not answered when the batch was cancelled",
    ErrorCode.BATCH_FAILED: "not sent, because the server refused every request",
}

MARK_WORDS: Final[Mapping[str, str]] = {Mark.TRUNCATED: "truncated", Mark.INVALID_OUTPUT: "with invalid output"}

MARK_MEANINGS: Final[Mapping[str, str]] = {
    Mark.TRUNCATED: "cut off by a limit of tokens",
    Mark.INVALID_OUTPUT: "does not fit the JSON schema of its request",
}

MARK_ADVICE: Final[Mapping[str, str]] = {
    Mark.TRUNCATED: "Raise max_tokens in the requests, or send them again as they are",
    Mark.INVALID_OUTPUT: "Make the prompt or the schema clearer, or send them again as they are",
}
"""Sentences about what to do, which the command of a retry follows."""

MAX_MESSAGE: Final = 160
"""Characters of a message in a line of text."""

UNANSWERED_WORDS: Final[Mapping[str, str]] = {
    ErrorCode.BATCH_CANCELLED: "cancelled",
    ErrorCode.BATCH_EXPIRED: "expired",
}
"""Words for the codes of requests that were unanswered when the batch ended, which are not failures."""


def unit_cost(amount: str, number: int, currency: str | None) -> str:
    """Return the cost per unit, formatted."""
    return formatting.format_money(str(Decimal(amount) / number), currency)


def statuses_text(counts: Mapping[int, int]) -> str:
    """Return HTTP statuses with their counts as text; status 0 means no answer."""
    counts_by_name = {str(status or "no\u202fanswer"): number for status, number in counts.items()}
    return ", ".join(f"{status}{MULTIPLIER}{number:,}" for status, number in counts_by_name.items())


def outcome_sentence(batch: BatchRecord, report: BatchReport) -> str:
    """Return a sentence that summarizes how the batch's requests ended."""
    total, completed, unanswered_counts = batch.total, batch.completed, unanswered_by_word(report)
    failed = total - completed - sum(unanswered_counts.values())
    marks = f" ({marks_text(report)})" if report.marks else ""
    if completed == total:
        if total == 1:
            return f"The one request was answered{marks.replace('1 of them ', '')}."
        return f"All {total:,} requests were answered{marks}."
    ends = [
        f"{number:,} expired" if word == "expired" else f"{number:,} {'was' if number == 1 else 'were'} {word}"
        for word, number in unanswered_counts.items()
    ]
    if failed:
        ends.insert(0, f"{failed:,} failed")
    if total == 1:
        return f"The one request {ends[0].removeprefix('1 ')}."
    if not completed:
        text = f"None of the {total:,} requests was answered"
        return f"{text}." if failed == total else f"{text}: {', '.join(ends)}."
    verb = "was" if completed == 1 else "were"
    return f"{completed:,} of {total:,} requests {verb} answered{marks}, {', '.join(ends)}."


def unanswered_by_word(report: BatchReport | None) -> dict[str, int]:
    """Return the counts of unanswered requests, by the word for them."""
    failures = report.failures if report is not None else {}
    return {word: failures[code] for code, word in UNANSWERED_WORDS.items() if failures.get(code)}


def marks_text(report: BatchReport | None) -> str:
    """Return the counts of marked answers, as part of a sentence about completed requests; empty without marks."""
    marks = report.marks if report is not None else {}
    return ", ".join(f"{count:,} of them {MARK_WORDS.get(mark, mark)}" for mark, count in marks.items())


def retry_command(batch_id: str, mark: str) -> str:
    """Return the command that sends the requests with a mark again."""
    return f"batchline batches retry {batch_id} --mark {mark}"


def failures_text(report: BatchReport | None) -> str:
    """Return the error codes with their counts, each with its most frequent message if that is known."""
    texts = []
    for code, count in report.failures.items() if report is not None else ():
        found = report.failure_messages.get(code) if report is not None else None
        message = f" (most often: {formatting.shorten(found.message, MAX_MESSAGE)})" if found else ""
        texts.append(f"{code} {count:,}{message}")
    return ", ".join(texts)


def bar_segments(
    shares: Sequence[tuple[float, str]], whole: float, min_width: float
) -> list[tuple[str, float, float]]:
    """Return class, left edge and width of a bar's parts in per cent; parts above 0 have at least `min_width`."""
    parts = [(name, part) for part, name in shares if part > 0 and whole > 0]
    whole = max(whole, sum(part for _, part in parts))
    widths = [max(100 * part / whole, min_width) for _, part in parts]
    if (excess := sum(widths) - 100) > 0:  # taken from the largest part, as small ones were widened
        widths[widths.index(max(widths))] -= excess
    lefts = accumulate(widths, initial=0.0)
    return [
        (name, round(left, 2), round(width, 2))
        for (name, _), left, width in zip(parts, lefts, widths, strict=False)
    ]


FILTERS: Final[Mapping[str, Callable[..., Any]]] = {
    "compact": formatting.format_compact,
    "cost_each": unit_cost,
    "count": formatting.format_count,
    "duration": formatting.format_duration,
    "iso": formatting.format_iso,
    "moment": formatting.format_time,
    "money": formatting.format_money,
    "plain": formatting.shorten,
    "retry_command": retry_command,
    "share": formatting.format_share,
    "span": formatting.format_span,
    "speed": formatting.format_rate,
    "statuses": statuses_text,
    "stretches": bar_segments,
}
