"""Creates and parses identifiers, which are time-ordered, so that an id is also a cursor."""

import uuid6

BATCH_PREFIX = "batch-"
FILE_PREFIX = "file-"
REQUEST_PREFIX = "req-"
KEY_PREFIX = "key-"
SYNC_PREFIX = "sync-"


def new_batch_id() -> str:
    """Return a new `batch-<uuid7 hex>`."""
    return BATCH_PREFIX + uuid6.uuid7().hex


def new_file_id() -> str:
    """Return a new `file-<uuid7 hex>`."""
    return FILE_PREFIX + uuid6.uuid7().hex


def new_sync_id() -> str:
    """Return a new `sync-<uuid7 hex>`."""
    return SYNC_PREFIX + uuid6.uuid7().hex


def request_id_prefix(batch_id: str) -> str:
    """Return the prefix of the ids of a batch's requests: `req-<batch hex>-`."""
    return f"{REQUEST_PREFIX}{batch_id.removeprefix(BATCH_PREFIX)}-"


def request_id(batch_id: str, line: int) -> str:
    """Return the id of the request on `line` (from 1) of the batch's input file."""
    return f"{request_id_prefix(batch_id)}{line}"


def batch_id_of_request(request_id: str) -> str:
    """Return the id of the batch that the request belongs to."""
    return BATCH_PREFIX + request_id.removeprefix(REQUEST_PREFIX).partition("-")[0]


def new_key_id() -> str:
    """Return a new `key-<uuid7 hex>`."""
    return KEY_PREFIX + uuid6.uuid7().hex
