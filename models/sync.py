"""Options, events and summary of a sync pass over a watched folder."""

from collections import Counter
from collections.abc import Iterable
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from batchline.models.base import WireModel
from batchline.models.formatting import strip_controls
from batchline.models.options import GivenOptions

AfterAction = Literal["keep", "move", "delete"]
SyncEventKind = Literal[
    "taken",
    "unchanged",
    "waiting",
    "changed",
    "quarantined",
    "unreadable",
    "moved",
    "deleted",
    "started",
    "written_back",
    "failed",
]

FILE_EVENT_KINDS: Final = ("taken", "unchanged", "waiting", "changed", "quarantined", "unreadable")
"""Kinds of which each file found has exactly one event."""

SHOWN_COUNTS: Final = ("taken", "started", "unchanged", "waiting", "changed", "quarantined", "written_back")
"""Kinds whose number of events a summary has, in the order of its message."""

KIND_TEXTS: Final[dict[SyncEventKind, str]] = {
    "waiting": "waiting for",
    "changed": "left for the next pass:",
    "written_back": "wrote results back for",
}


class SyncOptions(BaseModel):
    """Options of the batches made from new files, and the action on each file afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str | None = Field(
        default=None, description="Endpoint of all requests; by default that of the first request."
    )
    completion_window: str = "24h"
    metadata: dict[str, str] | None = None
    options: GivenOptions | None = Field(default=None, description="Options of the batches themselves.")
    write_back: bool = Field(default=False, description="Write results to the outbox when the batch has ended.")
    after: AfterAction = Field(default="keep", description="Action on a file after a batch was created from it.")


class SyncEvent(WireModel):
    """An event of a sync pass."""

    kind: SyncEventKind
    file: str | None = Field(default=None, description="Address of the file in the watched folder.")
    batch_id: str | None = None
    place: str | None = Field(default=None, description="Address of the moved or written file.")
    reason: str | None = None

    def __str__(self) -> str:
        parts = [
            KIND_TEXTS.get(self.kind, self.kind),
            self.file,
            self.batch_id and f"as {self.batch_id}" if self.kind == "taken" else self.batch_id,
            self.place and f"to {self.place}",
            self.reason and f"({self.reason})",
        ]
        return strip_controls(" ".join(part for part in parts if part))


class SyncSummary(WireModel):
    """The result of a sync pass; `events` are in order and leave out unchanged files."""

    sync_id: str
    source: str
    dry_run: bool = False
    found: int
    taken: int
    unchanged: int
    waiting: int
    changed: int
    quarantined: int
    started: int
    written_back: int
    failed: int = Field(description="Files that could not be read, and other failed actions.")
    events: list[SyncEvent]

    @property
    def message(self) -> str:
        """The counts that are not zero, on one line."""
        counts = [
            f"{getattr(self, name):,} {name.replace('_', ' ')}"
            for name in (*SHOWN_COUNTS, "failed")
            if getattr(self, name)
        ]
        return ", ".join((f"{self.found:,} found", *counts)) + (" (dry run)" if self.dry_run else "")


def summarize_events(events: Iterable[SyncEvent], *, sync_id: str, source: str, dry_run: bool) -> SyncSummary:
    """Return the summary of a sync pass's events."""
    counts: Counter[str] = Counter()
    reported_events = []
    for event in events:
        counts[event.kind] += 1
        if event.kind != "unchanged":
            reported_events.append(event)
    return SyncSummary(
        sync_id=sync_id,
        source=source,
        dry_run=dry_run,
        found=sum(counts[kind] for kind in FILE_EVENT_KINDS),
        **{kind: counts[kind] for kind in SHOWN_COUNTS},
        failed=counts["failed"] + counts["unreadable"],
        events=reported_events,
    )
