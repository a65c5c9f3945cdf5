"""Batches as `GET /v1/batches/{id}` and `GET /v1/batches` show them: each field, and nothing that is absent."""

import msgspec
import pytest
from helpers.api_server import ApiServer
from helpers.record_edits import change_batch
from helpers.sample_records import NOW, make_batch, make_full_batch

from batchline.models.batches import BatchError, BatchResponse
from batchline.storage.records.store import BatchRecord

ODD = "Größe 😀 \"'\\ %s %% {} \n\r\t\x7f\u2028"
"""Letters that JSON escapes or a template would take for its own."""

FULL = make_full_batch()
ODD_BATCH = make_batch(
    endpoint=ODD,
    created_at=NOW - 1,
    metadata={ODD + "\0": ODD + "\0", "": ""},
    errors=tuple(BatchError(code=ODD, line=line, message=ODD) for line in range(1, 1_001)),
)
BARE = make_batch(created_at=NOW - 2)


@pytest.fixture
def served(start_api, database) -> ApiServer:
    started: ApiServer = start_api(**database)
    for batch in (FULL, ODD_BATCH, BARE):  # of no source: the server runs those of the API
        started.client.services.records.add_batch(batch)
    return started


def shown(batch: BatchRecord, *, include_analytics: bool = False) -> dict[str, object]:
    """The fields of the API, those that are absent left out."""
    response = batch.to_response(include_analytics=include_analytics)
    return {name: value for name, value in response.model_dump(mode="json").items() if value is not None}


def test_batch_with_all_fields_is_returned_completely(served: ApiServer):
    http = served.http()

    plain = http.get(f"/v1/batches/{FULL.id}")
    included = http.get(f"/v1/batches/{FULL.id}", params={"include": "analytics"})

    assert plain.headers["content-type"] == included.headers["content-type"] == "application/json"
    assert set(included.json()) == set(BatchResponse.model_fields)
    assert included.json() == shown(FULL, include_analytics=True)
    assert plain.json() == shown(FULL)
    assert "analytics" not in plain.json()


@pytest.mark.parametrize("batch", [ODD_BATCH, BARE], ids=["odd texts", "bare"])
def test_batch_response_matches_record(batch: BatchRecord, served: ApiServer):
    found = served.http().get(f"/v1/batches/{batch.id}").json()

    assert found == shown(batch)
    assert None not in found.values()


def test_batch_list_items_match_single_batch_responses(served: ApiServer):
    http = served.http()

    first = http.get("/v1/batches", params={"limit": 2}).json()
    rest = http.get("/v1/batches", params={"limit": 2, "after": first["last_id"]}).json()
    included = http.get("/v1/batches", params={"include": "analytics"}).json()

    ids = {"first_id": FULL.id, "last_id": ODD_BATCH.id}
    assert first == {"object": "list", "data": [shown(FULL), shown(ODD_BATCH)], **ids, "has_more": True}
    ids = {"first_id": BARE.id, "last_id": BARE.id}
    assert rest == {"object": "list", "data": [shown(BARE)], **ids, "has_more": False}
    assert included["data"][0] == shown(FULL, include_analytics=True)


def test_empty_batch_list_has_no_first_and_last_id(served: ApiServer):
    found = served.http().get("/v1/batches", params={"search": "no such batch"}).json()

    assert found == {"object": "list", "data": [], "has_more": False}


def test_batch_read_after_update_returns_new_values(served: ApiServer):
    http, records = served.http(), served.client.services.records
    before = http.get(f"/v1/batches/{FULL.id}").json()

    changed = change_batch(records, FULL.id, total=FULL.total + 1)

    assert http.get(f"/v1/batches/{FULL.id}").json() == shown(msgspec.structs.replace(FULL, total=changed.total))
    assert before == shown(FULL)


@pytest.mark.parametrize("batch_id", ["batch-none", "'", "%00", "%ED%A0%80", "x" * 1_000])
def test_unknown_batch_id_returns_404(batch_id: str, served: ApiServer):
    assert served.http().get(f"/v1/batches/{batch_id}").status_code == 404
    assert served.http().get(f"/v1/batches?after={batch_id}").status_code == 404
