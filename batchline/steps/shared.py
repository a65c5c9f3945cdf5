"""What processes that share the sending of a batch tell each other: counts, progress, and why to stop."""

import time
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from batchline.models.failures import ErrorCode
from batchline.upstream.progress import RunProgress
from batchline.upstream.run import Stop

SILENT_S: Final = 10.0
"""A process that has reported nothing for so long has nothing under way."""

NOTHING: Final = RunProgress(
    completed=0,
    failed=0,
    in_flight=0,
    attempts=0,
    retried=0,
    prompt_tokens=0,
    completion_tokens=0,
    total_tokens=0,
    limit=0,
    ceiling=0,
    paused=None,
)
"""The progress of a process that sends nothing."""


class SenderReport(msgspec.Struct, frozen=True, kw_only=True):
    """One process's part in a batch: chunk → requests completed and failed so far, and how its run goes.

    `number` is another with each report.
    """

    number: int = 0
    chunks: dict[int, tuple[int, int]] = {}
    progress: RunProgress = NOTHING
    stopped: Stop | None = None


encode_report = msgspec.json.encode
_decode = msgspec.json.Decoder(SenderReport).decode


def reports_of(texts: Mapping[str, str]) -> dict[str, SenderReport]:
    """Sender → what it has reported."""
    return {sender: _decode(text) for sender, text in texts.items()}


def settled(reports: Iterable[SenderReport]) -> tuple[int, int]:
    """Requests completed and failed.

    A chunk that was sent by two, since the first has died, counts as by whoever has come further.
    """
    furthest: dict[int, tuple[int, int]] = {}
    for report in reports:
        for chunk, counts in report.chunks.items():
            furthest[chunk] = max(furthest.get(chunk, (0, 0)), counts, key=sum)
    return sum(ok for ok, _ in furthest.values()), sum(failed for _, failed in furthest.values())


def refusal(reports: Iterable[SenderReport]) -> Stop | None:
    """The stop of a process whose upstream refuses every request, which is to stop all."""
    return next(
        (
            report.stopped
            for report in reports
            if report.stopped is not None and report.stopped.code is ErrorCode.BATCH_FAILED
        ),
        None,
    )


class Elsewhere:
    """What the processes that send for this one have reported last."""

    def __init__(self) -> None:
        self._reports: dict[str, SenderReport] = {}
        self._heard_at: dict[str, float] = {}

    def hear(self, reports: Mapping[str, SenderReport]) -> None:
        """Take in what is reported now."""
        now = time.monotonic()
        for sender, report in reports.items():
            known = self._reports.get(sender)
            if known is None or known.number != report.number:
                self._heard_at[sender] = now
        self._reports = dict(reports)

    def counts(self) -> tuple[int, int]:
        """Requests completed and failed."""
        return settled(self._reports.values())

    def with_theirs(self, progress: RunProgress) -> RunProgress:
        """The progress of all processes as if it were one's."""
        speaking_since = time.monotonic() - SILENT_S
        every = [
            report.progress if self._heard_at[sender] > speaking_since else at_rest(report.progress)
            for sender, report in self._reports.items()
        ]
        names = [name for name in RunProgress.__struct_fields__ if name != "paused"]
        sums = {name: sum(getattr(each, name) for each in (progress, *every)) for name in names}
        return RunProgress(**sums, paused=next((each.paused for each in (progress, *every) if each.paused), None))


def at_rest(progress: RunProgress) -> RunProgress:
    """The same of a process that sends nothing any more."""
    return msgspec.structs.replace(progress, in_flight=0, limit=0, ceiling=0, paused=None)
