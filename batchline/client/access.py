"""On whose behalf files and batches are handled, and how much may be."""

from typing import Final
from uuid import UUID

import msgspec

from batchline.storage.records.store import OpenBatchLimit

NO_MEMBER: Final = UUID(int=0)


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks: what is made is `member_id`'s, and one who is `confined` sees nobody else's. Else all is open."""

    member_id: str | None = None
    is_restricted: bool = False
    max_upload_bytes: int | None = None
    max_open_batches: int | None = None

    @property
    def member_filter(self) -> str | None:
        """The member whose files and batches alone are seen; everybody's where there is none."""
        return self.member_id if self.is_restricted else None

    def open_batch_limit(self, member_id: str | None) -> OpenBatchLimit | None:
        """How many may be open when one of that member's batches is opened; others' batches are not counted."""
        if self.max_open_batches is None or member_id != self.member_id:
            return None
        return OpenBatchLimit(member_id, self.max_open_batches)

    def visible_member(self, requested_member: UUID | None) -> UUID | None:
        """Whose files or batches a list shows where those of `asked` are asked for, or everybody's for none."""
        if self.member_filter is None:
            return requested_member
        return UUID(self.member_filter) if requested_member in {None, UUID(self.member_filter)} else NO_MEMBER


UNRESTRICTED: Final = Access()
