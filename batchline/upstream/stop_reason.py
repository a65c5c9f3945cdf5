"""The reason for which a session ends early."""

import msgspec

from batchline.models.error_codes import ErrorCode


class StopReason(msgspec.Struct, frozen=True):
    """The reason why a session ends early.

    Unsettled calls get `code`; if it is None, they are left to the next runner of the batch. Requests in flight
    are aborted after the grace period, unless the batch is paused.
    """

    code: ErrorCode | None
    message: str
    is_pause: bool = False
