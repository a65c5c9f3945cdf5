"""Deployments that are served without a worker equal those in prefect.yaml."""

from pathlib import Path
from typing import Any

import yaml
from prefect.deployments.runner import RunnerDeployment
from prefect.utilities.callables import parameter_schema

from batchline.flows.deployments import deployments
from batchline.flows.sync_source import sync_source
from batchline.models.options import BatchOptions
from batchline.models.sync import SyncOptions

ROOT = Path(__file__).parent.parent.parent


def deployed() -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]}


def test_served_deployments_equal_prefect_yaml():
    for served in deployments():
        written = deployed()[served.name]
        assert served.entrypoint == written["entrypoint"]
        assert (served.tags, served.description) == (written["tags"], written["description"])
        assert (served.concurrency_limit, collision_of(served)) == limit_of(written)
        assert served.parameters == written.get("parameters", {})
        assert [
            {"interval": each.schedule.interval.total_seconds(), "active": each.active}
            for each in served.schedules or []
        ] == written.get("schedules", [])
        for trigger, wanted in zip(served.triggers, written.get("triggers", []), strict=True):
            assert [*trigger.expect] == wanted["expect"]
            assert trigger.match.model_dump() == wanted["match"]
            assert trigger.match_related.model_dump() == wanted.get("match_related", {})
            assert trigger.parameters == wanted.get("parameters")


def collision_of(served: RunnerDeployment) -> str | None:
    return served.concurrency_options.collision_strategy.value if served.concurrency_options else None


def limit_of(written: dict[str, Any]) -> tuple[int | None, str | None]:
    limit = written.get("concurrency_limit")
    return (limit["limit"], limit["collision_strategy"]) if isinstance(limit, dict) else (limit, None)


def test_every_deployment_in_prefect_yaml_is_served():
    assert [each.name for each in deployments()] == [*deployed()]


def test_watched_folder_activates_sync_schedule():
    sync = {each.name: each for each in deployments(watched_uri="/jobs/inbox", limit=3)}["sync-source"]

    assert sync.parameters == {"uri": "/jobs/inbox"}
    assert [each.active for each in sync.schedules] == [True]


def test_watched_folder_options_become_flow_parameters():
    options = SyncOptions(
        endpoint="/v1/embeddings", options=BatchOptions(on_limit="stop"), write_back=True, after="move"
    )

    sync = {each.name: each for each in deployments(watched_uri="/jobs/inbox", options=options)}["sync-source"]

    chosen = {
        "endpoint": "/v1/embeddings",
        "options": {"on_limit": "stop"},
        "write_back": True,
        "after": "move",
    }
    assert sync.parameters == {"uri": "/jobs/inbox", **chosen}
    assert set(chosen) <= set(parameter_schema(sync_source).properties)


def test_sync_deployment_runs_one_pass_at_a_time():
    sync = {each.name: each for each in deployments()}["sync-source"]

    assert sync.concurrency_limit == deployed()["sync-source"]["concurrency_limit"] == 1


def test_served_deployments_have_no_work_pool():
    assert all("work_pool_name" in each.model_fields_set for each in deployments())
    assert [each.work_pool_name for each in deployments()] == [None] * 3
