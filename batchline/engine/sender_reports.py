"""Reports that the processes sending one batch exchange: counts, progress, and reasons to stop."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from batchline.upstream.session_progress import SessionProgress
from batchline.upstream.stop_reason import StopReason

SILENT_AFTER_S: Final = 10.0
"""Seconds without a new report after which a process is assumed to have nothing in flight."""

SUMMED_FIELDS: Final = [name for name in SessionProgress.__struct_fields__ if name != "paused"]
IDLE_PROGRESS: Final = SessionProgress(**dict.fromkeys(SUMMED_FIELDS, 0), paused=None)
"""The progress of a process that sends nothing."""


class SenderReport(msgspec.Struct, frozen=True, kw_only=True):
    """A sender's counts (chunk → completed, failed), progress and stop; `number` changes with each report."""

    number: int = 0
    chunks: dict[int, tuple[int, int]] = {}
    progress: SessionProgress = IDLE_PROGRESS
    stopped: StopReason | None = None


encode_report = msgspec.json.encode
_decode_report = msgspec.json.Decoder(SenderReport).decode


def decode_reports(texts: Mapping[str, str]) -> dict[str, SenderReport]:
    """Decode JSON reports, by sender."""
    return {sender: _decode_report(text) for sender, text in texts.items()}


def total_counts(reports: Iterable[SenderReport]) -> tuple[int, int]:
    """Return the requests completed and failed, over all chunks."""
    best_counts: dict[int, tuple[int, int]] = {}
    # A chunk is counted once though two processes sent it, the first of which died: the larger counts win.
    for report in reports:
        for chunk, counts in report.chunks.items():
            best_counts[chunk] = max(best_counts.get(chunk, (0, 0)), counts, key=sum)
    completed, failed = (sum(numbers) for numbers in zip((0, 0), *best_counts.values(), strict=True))
    return completed, failed


def find_limit_stop(reports: Iterable[SenderReport]) -> StopReason | None:
    """Return the stop of a sender that has reached a limit, which stops all; None if none has."""
    stops = (report.stopped for report in reports)
    # A person's pause is read from the record, where it may have ended since.
    return next((stop for stop in stops if stop is not None and stop.limit not in {None, "by_user"}), None)


class RemoteSenders:
    """The latest reports of the other sender processes."""

    def __init__(self) -> None:
        self._reports: dict[str, SenderReport] = {}
        self._reported_at: dict[str, float] = {}

    def update(self, reports: Mapping[str, SenderReport]) -> None:
        """Replace the reports, noting when each sender's report last changed."""
        now = time.monotonic()
        for sender, report in reports.items():
            previous = self._reports.get(sender)
            if previous is None or previous.number != report.number:
                self._reported_at[sender] = now
        self._reports = dict(reports)

    def counts(self) -> tuple[int, int]:
        """Return the requests that the other senders completed and failed."""
        return total_counts(self._reports.values())

    def merge_progress(self, progress: SessionProgress) -> SessionProgress:
        """Return the combined progress of this process and the other senders."""
        silent_before = time.monotonic() - SILENT_AFTER_S
        parts = [progress] + [
            report.progress if self._reported_at[sender] > silent_before else as_idle(report.progress)
            for sender, report in self._reports.items()
        ]
        sums = {name: sum(getattr(part, name) for part in parts) for name in SUMMED_FIELDS}
        return SessionProgress(**sums, paused=next((part.paused for part in parts if part.paused), None))


def as_idle(progress: SessionProgress) -> SessionProgress:
    """Return the progress of a process that has stopped sending."""
    return msgspec.structs.replace(progress, in_flight=0, limit=0, ceiling=0, paused=None)
