"""The rights and limits under which files and batches are handled."""

from typing import Final
from uuid import UUID

import msgspec

from batchline.storage.records.store import OpenBatchLimit

NO_MEMBER: Final = UUID(int=0)


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """One caller's rights: objects are created for `member_id`, and if `is_restricted` no others are visible."""

    member_id: str | None = None
    is_restricted: bool = False
    max_upload_bytes: int | None = None
    max_open_batches: int | None = None

    @property
    def member_filter(self) -> str | None:
        """The only member whose files and batches are visible, or None if all are."""
        return self.member_id if self.is_restricted else None

    def open_batch_limit(self, member_id: str | None) -> OpenBatchLimit | None:
        """Return the limit to check when a batch of that member is opened; None for another member's batch."""
        if self.max_open_batches is None or member_id != self.member_id:
            return None
        return OpenBatchLimit(member_id, self.max_open_batches)

    def visible_member(self, requested_member: UUID | None) -> UUID | None:
        """Return the member whose objects a list shows: the requested one if visible, None for all members."""
        if self.member_filter is None:
            return requested_member
        # NO_MEMBER owns nothing: another member's list is empty, as if that member did not exist.
        return UUID(self.member_filter) if requested_member in {None, UUID(self.member_filter)} else NO_MEMBER


UNRESTRICTED: Final = Access()
