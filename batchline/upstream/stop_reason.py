"""The reason for which a session ends early."""

import msgspec

from batchline.models.batches import PauseCode
from batchline.models.error_codes import ErrorCode


class StopReason(msgspec.Struct, frozen=True):
    """The reason why a session ends early.

    Unsettled calls get `code`; if it is None, they are left to the next runner of the batch. Requests in flight
    are aborted after the grace period, unless the batch is paused.
    """

    code: ErrorCode | None
    message: str
    limit: PauseCode | None = None
    """The limit that was reached, or `by_user` for a pause by a person."""

    @property
    def is_pause(self) -> bool:
        """True if the batch is paused, as opposed to stopped."""
        return self.limit is not None and self.code is None
