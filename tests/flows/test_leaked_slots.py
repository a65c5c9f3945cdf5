"""Slots of an upstream that nobody holds any more are found on a real Prefect server, and freed."""

from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client

from batchline import Batchline
from batchline.client.housekeeping import run_housekeeping
from batchline.engine.services import Services
from batchline.orchestration import leaked_slots
from batchline.orchestration.quota_store import PrefectQuotaStore

pytestmark = [pytest.mark.system, pytest.mark.usefixtures("prefect_server")]


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> str:
    """The start of the names of an upstream's limits that no other test uses, with slots taken by nobody."""
    start = f"batchline-leaking-{uuid4().hex[:8]}"
    monkeypatch.setattr(leaked_slots, "NAME_PREFIX", start)
    with PrefectQuotaStore() as ledger, get_client(sync_client=True) as client:
        for kind, taken in (("processes", 1), ("in-flight", 56), ("requests-per-minute", 0)):
            ledger.create_limit(f"{start}-{kind}", 64)
            if taken:  # as after a server has forgotten the leases
                client.increment_concurrency_slots(names=[f"{start}-{kind}"], slots=taken, mode="concurrency")
    return start


def freed(services: Services) -> list[str]:
    done = run_housekeeping(Batchline(services=services), apply=True)
    return sorted(chore.subject for chore in done if chore.kind == "free_slots" and chore.done)


def test_leaked_slots_are_freed_once_upstream_is_quiet(upstream, make_services, monkeypatch):
    services = make_services("http://127.0.0.1:9/v1", share_budgets=True)
    assert freed(services) == []

    monkeypatch.setattr(leaked_slots, "IDLE_AFTER_S", -5.0)

    assert freed(services) == [f"{upstream}-in-flight", f"{upstream}-processes"]
    with get_client(sync_client=True) as client:
        assert client.read_global_concurrency_limit_by_name(f"{upstream}-in-flight").active_slots == 0
    assert freed(services) == []


def test_slots_of_live_process_are_kept(upstream, make_services, monkeypatch):
    services = make_services("http://127.0.0.1:9/v1", share_budgets=True)
    name = f"{upstream}-processes"
    with PrefectQuotaStore() as ledger, get_client(sync_client=True) as client:
        before = client.read_global_concurrency_limit_by_name(name).updated
        ledger.report_alive(name)
        after = client.read_global_concurrency_limit_by_name(name).updated

    assert before < after
    assert freed(services) == []
