"""What is wrong with uploaded files and what they would cost, found once and remembered for the next look."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final, NamedTuple

from batchline.models.batches import BatchError
from batchline.models.errors import InvalidInput
from batchline.models.files import FileObject
from batchline.models.plan import Plan
from batchline.operations import Batchline
from batchline.operations.estimate import CostEstimate, estimate_stored

MOST_BYTES: Final = 512 * 2**20
"""Larger files take longer to read than a person waits; their batch checks them as its first step."""

REMEMBERED: Final = 256
SHOWN_MODELS: Final = 20


class Check(NamedTuple):
    """What a batch of the file would be, or why it cannot be one."""

    endpoint: str
    requests: int
    models: list[str]
    errors: list[BatchError]
    error_count: int
    estimate: CostEstimate | None


class Checks:
    """The checks of late; files do not change, so that each holds for as long as its file is there."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, str | None], Check] = OrderedDict()

    def of(self, client: Batchline, file: FileObject, endpoint: str | None) -> Check | None:
        """What is found in the file; none where it is too large to look. Raises as `Files.check`."""
        if file.bytes > MOST_BYTES:
            return None
        key = file.id, endpoint
        with self._lock:
            known = self._known.get(key)
        if known is None:
            known = _checked(client, file.id, endpoint)
            with self._lock:
                self._known[key] = known
                if len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
        return known


def _checked(client: Batchline, file_id: str, endpoint: str | None) -> Check:
    found = client.files.check(file_id, endpoint=endpoint)
    if found.plan is None:
        return Check(endpoint or "", 0, [], found.errors, found.error_count, None)
    return _good(found.plan, _estimate(client, file_id))


def _good(plan: Plan, estimate: CostEstimate | None) -> Check:
    return Check(plan.endpoint, plan.total, plan.models, [], 0, estimate)


def _estimate(client: Batchline, file_id: str) -> CostEstimate | None:
    try:
        return estimate_stored(client, file_id)
    except InvalidInput:  # nothing that could be estimated
        return None
