"""The OpenAPI document: complete, and true of what the server does."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.api_server import ENDPOINT, ApiServer, root_of
from helpers.request_files import write_requests

from batchline import Batchline
from batchline.api import create_app
from batchline.models.batches import BatchResponse, BatchResultsQuery, CreateBatchRequest, ListBatchesQuery
from batchline.models.files import FileObject, ListFilesQuery

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
COMMAND = Path(sys.executable).with_name("schemathesis")


@pytest.fixture
def document() -> dict[str, Any]:
    return create_app(Batchline()).openapi()


def routes(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [route for path in document["paths"].values() for route in path.values()]


def test_openapi_operations_document_errors_with_one_schema(document):
    for route in routes(document):
        errors = {status: answer for status, answer in route["responses"].items() if status[0] in "45"}
        assert {"400", "401", "403", "404", "405", "413", "429", "500", "503"} <= set(errors), route["operationId"]
        assert "422" not in errors
        for answer in errors.values():
            schema = answer["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorResponse"}


def test_openapi_paths_except_health_require_key(document):
    opened = {path for path, some in document["paths"].items() for route in some.values() if not route["security"]}
    assert opened == {"/healthz", "/readyz"}


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/v1/batches", ListBatchesQuery),
        ("/v1/files", ListFilesQuery),
        ("/v1/batches/{batch_id}/results", BatchResultsQuery),
    ],
)
def test_openapi_query_parameters_match_query_model(path, query, document):
    named = {each["name"] for each in document["paths"][path]["get"]["parameters"] if each["in"] == "query"}
    assert named == set(query.model_fields)


@pytest.mark.parametrize("model", [BatchResponse, FileObject])
def test_openapi_response_schema_matches_model(model, document):
    assert set(document["components"]["schemas"][model.__name__]["properties"]) == set(model.model_fields)


def test_openapi_create_batch_body_and_headers_match_model(document):
    named = set(document["components"]["schemas"]["CreateBatchBody"]["properties"])
    assert named == {*CreateBatchRequest.model_fields, "output_expires_after"}
    headers = document["paths"]["/v1/batches"]["post"]["parameters"]
    assert [each["name"].lower() for each in headers if each["in"] == "header"] == ["idempotency-key"]


@pytest.mark.system
@pytest.mark.parametrize("known", [False, True], ids=["no ids", "known ids"])
def test_server_conforms_to_openapi_document(known, served: ApiServer, tmp_path):
    arguments = ["run", f"{root_of(served.url)}/openapi.json", f"--checks={','.join(CHECKS)}"]
    arguments += ["--max-examples=15", "--generation-deterministic", "--no-color", "--warnings=off"]
    config = tmp_path / "schemathesis.toml"
    config.write_text(known_ids(served, tmp_path) if known else "")
    if known:
        arguments.append("--exclude-method=DELETE")

    done = subprocess.run(
        [COMMAND, f"--config-file={config}", *arguments], capture_output=True, text=True, timeout=240, cwd=tmp_path
    )

    assert done.returncode == 0, done.stdout[-5_000:]
    assert "22 total" in done.stdout


def known_ids(served: ApiServer, tmp_path: Path) -> str:
    """Parameters that name what is there."""
    prompt = lambda n: f"{n} simulate:status=400" if n == 1 else f"{n}?"  # noqa: E731
    file = served.client.files.create(file=write_requests(tmp_path / "r.jsonl", 5, prompt=prompt))
    batch = served.client.batches.create(input_file_id=file.id, endpoint=ENDPOINT)
    served.client.batches.wait(batch.id)
    return f'[parameters]\n"path.batch_id" = "{batch.id}"\n"path.file_id" = "{file.id}"\n'
