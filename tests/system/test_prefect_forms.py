"""Prefect's forms in a real browser, submitted as they open: runs start, blocks are made, keys are not shown."""

import json
from typing import Any

import pytest
from helpers.prefect_pages import V1, Refused
from helpers.prefect_stack import TIMEOUT_S, PrefectStack, until, write_requests

pytestmark = pytest.mark.system

KEY = "sk-form-0123456789"
DEPLOYMENTS = ("process-batch", "sync-source", "housekeeping")
DEFAULT_OPTIONS = {
    "on_truncated": "keep",
    "on_invalid_output": "keep",
    "max_identical_failures": 25,
    "on_limit": "pause",
}
UNTOUCHED: dict[str, dict[str, Any]] = {
    "process-batch": {
        "input_uri": "",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {},
        "options": DEFAULT_OPTIONS,
        "input_file_id": "",
        "batch_id": "",
        "crashed_run": "",
        "upstreams": [],
        "storage": "",
    },
    "sync-source": {
        "uri": "",
        "endpoint": "",
        "completion_window": "24h",
        "metadata": {},
        "options": DEFAULT_OPTIONS,
        "write_back": False,
        "after": "keep",
        "via": "deployment",
        "deployment": "",
        "storage": "",
        "dry_run": False,
    },
    "housekeeping": {"apply": True, "resume": True, "storage": ""},
}


def deployment_of(stack: PrefectStack, name: str) -> dict[str, Any]:
    found: dict[str, Any] = stack.call("GET", f"/deployments/name/{name}/{name}")
    return found


def ended(stack: PrefectStack, run_id: str) -> dict[str, Any]:
    """Return the flow run once a worker has run it to its end."""
    over = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

    def read() -> dict[str, Any] | None:
        run: dict[str, Any] = stack.call("GET", f"/flow_runs/{run_id}")
        return run if run["state"]["type"] in over else None

    return until(read)


def in_words(title: str, version: str) -> str:
    """Return the title that the form of a block has for the field."""
    return {"name": "Block Name" if version == V1 else "Name"}.get(title, title.replace("_", " ").title())


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_form_defaults_are_valid_on_server(stack, name):
    deployment = deployment_of(stack, name)
    schema = deployment["parameter_openapi_schema"]
    defaults = {name: about.get("default") for name, about in schema["properties"].items()}
    values = {**defaults, **deployment["parameters"]}

    assert stack.call("POST", "/ui/schemas/validate", {"schema": schema, "values": values})["valid"]
    assert values == UNTOUCHED[name]


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_form_submitted_unchanged_creates_run_with_defaults(stack, pages, name):
    run_id = pages.deployment_form(deployment_of(stack, name)["id"]).submit()

    assert stack.call("GET", f"/flow_runs/{run_id}")["parameters"] == UNTOUCHED[name]


def test_form_starts_batch_with_block_and_hides_key(stack_with_worker, pages):
    stack, name = stack_with_worker, "form-v2" if pages.version else "form-v1"
    form = pages.block_form("batchline-upstream")
    typed = {"name": name, "base_url": stack.simulator.base_url, "api_key": KEY}
    form.fill(**{in_words(field, pages.version): value for field, value in typed.items()})
    is_masked = form.field("Api Key").locator("input[type=password]").count() == 1
    block_id = form.submit()
    pages.open(f"/blocks/block/{block_id}", wait_for="text=Api Key")
    block_page = pages.text()

    form = pages.deployment_form(deployment_of(stack, "process-batch")["id"])
    file = write_requests(stack.inbox / f"{name}.jsonl", 3)
    form.fill(input_uri=str(file), metadata={"team": "a"}, upstreams=[name])
    run_id = form.fill(**{"Identical failures in a row": "3"}).submit()
    run = stack.call("GET", f"/flow_runs/{run_id}")

    assert run["parameters"] == UNTOUCHED["process-batch"] | {
        "input_uri": str(file),
        "metadata": {"team": "a"},
        "options": DEFAULT_OPTIONS | {"max_identical_failures": 3},
        "upstreams": [name],
    }
    with stack.client() as client:
        (batch,) = until(lambda: client.batches.list(search=file.name).data)
        over = client.batches.wait(batch.id, timeout_s=TIMEOUT_S)
    assert (over.status, over.request_counts.completed, over.metadata) == ("completed", 3, {"team": "a"})
    assert over.model_dump()["options"] == {"max_identical_failures": 3}
    assert is_masked or pages.version == V1  # which masks no secret of any block
    assert KEY not in block_page
    assert KEY not in json.dumps(stack.call("GET", f"/block_documents/{block_id}"))
    assert KEY not in stack.log.read_text()


def test_sync_source_form_reads_folder(stack_with_worker, pages):
    folder = stack_with_worker.inbox / f"folder{pages.version.replace('/', '-')}"
    folder.mkdir()
    write_requests(folder / "a.jsonl", 2)
    form = pages.deployment_form(deployment_of(stack_with_worker, "sync-source")["id"])

    run = ended(stack_with_worker, form.fill(uri=str(folder)).submit())

    assert run["state"]["type"] == "COMPLETED"
    assert run["state"]["message"].startswith("1 ")


def test_form_rejects_value_of_wrong_type(stack, pages):
    form = pages.deployment_form(deployment_of(stack, "process-batch")["id"])

    with pytest.raises(Refused, match="is not of type 'string'"):
        form.fill(metadata={"team": 1}).submit()


def test_run_page_of_invalid_file_lists_errors(stack_with_worker, pages, tmp_path):
    stack, file = stack_with_worker, stack_with_worker.inbox / f"bad{pages.version.replace('/', '-')}.jsonl"
    file.write_text("nonsense\n{}\n")
    form = pages.deployment_form(deployment_of(stack, "process-batch")["id"])

    run_id = form.fill(input_uri=str(file)).submit()
    run = ended(stack, run_id)
    artifacts = {each["type"]: each["id"] for each in stack.artifacts(run_id)}
    pages.open(f"/artifacts/artifact/{artifacts['markdown']}", wait_for="text=custom_id is missing")
    listed = pages.text()
    pages.picture(tmp_path / "outcome.png")
    pages.open(f"/runs/flow-run/{run_id}", wait_for="text=Finished in state Failed")
    pages.picture(tmp_path / "run.png")

    (task,) = stack.call("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
    assert (task["name"], task["state"]["type"]) == ("validate", "FAILED")
    assert task["state"]["message"] == run["state"]["message"]
    for expected in ("not JSON", "missing_required_parameter", "method is missing", "body is missing"):
        assert expected in listed
