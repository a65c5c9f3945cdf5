"""Cache of the checks and cost estimates of uploaded files."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import suppress
from typing import Final, NamedTuple

from batchline.client import Batchline
from batchline.client.estimate import CostEstimate, estimate_file
from batchline.models.batches import BatchError
from batchline.models.errors import InvalidInput
from batchline.models.files import FileObject

MAX_CHECKED_BYTES: Final = 512 * 2**20
"""Larger files take too long to check while a user waits; the batch itself checks them first."""

MAX_CACHED_CHECKS: Final = 256
SHOWN_MODELS: Final = 20


class InputCheck(NamedTuple):
    """The properties of a batch made from the file, or the errors that prevent it."""

    endpoint: str
    requests: int
    models: list[str]
    errors: list[BatchError]
    error_count: int
    estimate: CostEstimate | None


class ValidationCache:
    """Recent checks. Files never change, so a check stays valid as long as its file exists."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, str | None], InputCheck] = OrderedDict()

    def get(self, client: Batchline, file: FileObject, endpoint: str | None) -> InputCheck | None:
        """Return the file's check, None if it is too large. Raises like `Files.validate`."""
        if file.bytes > MAX_CHECKED_BYTES:
            return None
        key = file.id, endpoint
        with self._lock:
            cached = self._entries.get(key)
        if cached is None:
            # Without the lock, since it may take seconds; a concurrent check gives the same result.
            cached = _check_file(client, file.id, endpoint)
            with self._lock:
                self._entries[key] = cached
                if len(self._entries) > MAX_CACHED_CHECKS:
                    self._entries.popitem(last=False)
        return cached


def _check_file(client: Batchline, file_id: str, endpoint: str | None) -> InputCheck:
    validation, estimate = client.files.validate(file_id, endpoint=endpoint), None
    plan = validation.plan
    if plan is None:
        return InputCheck(endpoint or "", 0, [], validation.errors, validation.error_count, None)
    with suppress(InvalidInput):  # the file has no request to estimate
        estimate = estimate_file(client, file_id)
    return InputCheck(plan.endpoint, plan.total, plan.models, [], 0, estimate)
