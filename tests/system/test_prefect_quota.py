"""Caps of an upstream over processes of their own and a real Prefect server."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.dispatcher_calls import make_bodies, make_calls, open_session
from helpers.polling import until
from helpers.prefect_server import start_prefect
from helpers.scripted_server import Action, Received, ScriptedServer, gated, reply
from helpers.shared_servers import prefect_home
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, GlobalConcurrencyLimitUpdate
from prefect.settings import PREFECT_API_URL, temporary_settings

from batchline import Batchline
from batchline.models.upstreams import Upstream
from batchline.orchestration.quota_store import PAGE_SIZE, PrefectQuotaStore
from batchline.upstream.dispatcher import Dispatcher
from batchline.upstream.quota.store import QuotaStoreError
from batchline.upstream.quota.upstream_quota import QuotaTiming

pytestmark = pytest.mark.system

SHARER = Path(__file__).parent.parent / "helpers" / "quota_process.py"
ROOT = Path(__file__).parent.parent.parent
TIMEOUT_S = 90.0
QUICK = QuotaTiming(poll_s=0.3, max_poll_s=0.6, lease_s=60.0)


@contextmanager
def serving(script: Callable[[Received], Action]) -> Iterator[ScriptedServer]:
    server = ScriptedServer(script).start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def prefect(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A server that keeps leases in files and looks every second for those that have ended; its URL and home."""
    home = prefect_home(tmp_path_factory.mktemp("prefect"))
    server = start_prefect(
        home,
        changes={
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
            "PREFECT_SERVER_SERVICES_REPOSSESSOR_LOOP_SECONDS": "1",
        },
    )
    yield server.url, home
    server.stop()


@pytest.fixture
def client(prefect) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: prefect[0]}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture
def sharer(prefect, tmp_path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Start processes that share the caps of an upstream; they end with the test."""
    environment = {
        **os.environ,
        "PREFECT_API_URL": prefect[0],
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PYTHONPATH": str(ROOT),
    }
    started = []

    def start(**options: object) -> subprocess.Popen:
        command = [sys.executable, str(SHARER), json.dumps({"period_s": 60.0, **options})]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def all_succeeded(processes: list[subprocess.Popen], requests: int) -> bool:
    said = [process.communicate(timeout=TIMEOUT_S)[0].split() for process in processes]
    return said == [["first", str(requests)]] * len(processes)


def taken(client: SyncPrefectClient, name: str) -> int:
    return client.read_global_concurrency_limit_by_name(name).active_slots


def end_leases(home: Path, names: list[str]) -> None:
    """Have leases end that would end within minutes; the server does the rest."""
    folder, past = home / "concurrency_leases", "2020-01-01T00:00:00+00:00"
    index = json.loads((folder / "expirations.json").read_text())
    for name in names:
        lease = json.loads((folder / f"{name}.json").read_text())
        (folder / f"{name}.json").write_text(json.dumps({**lease, "expiration": past}))
    (folder / "expirations.json").write_text(json.dumps(index | dict.fromkeys(names, past)))


def test_three_processes_stay_within_shared_limits(sharer, client):
    """The window looked at is a little shorter than the period: a loaded machine receives late what was sent."""
    period_s, cap, at_once = 3.0, 60, 10
    options = {"max_in_flight": at_once, "requests_per_minute": cap, "period_s": period_s, "requests": 50}
    with serving(lambda _: reply(after_s=0.03)) as server:
        processes = [sharer(name="three", base_url=server.base_url, **options) for _ in range(3)]
        assert all_succeeded(processes, 50)

    times = sorted(request.at for request in server.received)
    assert len(times) == 150
    assert max(sum(at <= other < at + 0.9 * period_s for other in times) for at in times) <= cap
    assert server.most_at_once <= at_once
    assert taken(client, "batchline-three-in-flight") == taken(client, "batchline-three-processes") == 0


def test_limit_changed_during_sending_is_followed(client):
    name = "batchline-changed-in-flight"
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=2))
    with serving(lambda _: reply(after_s=0.02)) as server:
        upstream = Upstream(name="changed", base_url=server.base_url, max_in_flight=4)
        with Dispatcher([upstream]) as caller, open_session(caller) as run, run.open_queue(0) as feed:
            caller.share_quota(PrefectQuotaStore, timing=QUICK)
            feed.put(make_calls(make_bodies(5_000), upstream="changed"))
            until(lambda: len(server.received) > 20, timeout_s=TIMEOUT_S)
            assert server.most_at_once == 2
            client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=0))
            until(lambda: run.snapshot().paused is not None, timeout_s=TIMEOUT_S)
            assert run.snapshot().in_flight == 0
            assert f"prefect gcl update {name} --limit N" in run.snapshot().paused
            client.update_global_concurrency_limit(name, GlobalConcurrencyLimitUpdate(limit=100))
            until(lambda: server.most_at_once == 4, timeout_s=TIMEOUT_S)


def test_slots_of_killed_process_are_released_when_leases_end(sharer, client, prefect):
    gate = threading.Event()
    with serving(lambda _: gated(gate)) as server:
        options = {"name": "killed", "base_url": server.base_url, "max_in_flight": 8, "requests": 50}
        first = sharer(**options)
        until(lambda: len(server.received) == 8, timeout_s=TIMEOUT_S)
        leases = [path.stem for path in prefect[1].glob("concurrency_leases/*-*.json")]
        first.kill()
        second = sharer(**options)
        while taken(client, "batchline-killed-processes") < 2:
            time.sleep(0.3)
        assert len(server.received) == taken(client, "batchline-killed-in-flight") == 8

        end_leases(prefect[1], leases)
        gate.set()
        assert all_succeeded([second], 50)


def test_api_server_shares_quota(make_services, chat_file, start_simulator, client, prefect):
    services = make_services(
        start_simulator().base_url, upstream={"name": "served"}, share_budgets=True, PREFECT_API_URL=prefect[0]
    )
    with Batchline(services=services) as batchline:
        batchline.prepare_to_serve()
        file = batchline.files.create(file=chat_file(20))
        batch = batchline.batches.create(input_file_id=file.id)
        assert batchline.batches.wait(batch.id).status == "completed"
    assert client.read_global_concurrency_limit_by_name("batchline-served-in-flight").limit == 64


def test_limit_name_derives_from_upstream_name_or_address(client):
    ledger = PrefectQuotaStore()

    def name(base_url: str, **options: str) -> str:
        return ledger.limit_name(Upstream(base_url=base_url, **options), "in-flight")

    assert name("http://one/v1", name="gpus") == "batchline-gpus-in-flight"
    assert name("https://api.example.com/v1") == "batchline-api.example.com-443-in-flight"
    assert name("http://[2001:db8::1]:8000") == "batchline-2001.db8..1-8000-in-flight"
    here = {name(f"http://{host}:8000") for host in ("localhost", "127.0.0.1", "[::1]")}
    assert here == {f"batchline-{socket.gethostname().lower()}-8000-in-flight"}


def test_missing_limit_grants_no_slots_and_last_of_many_is_found(client):
    for number in range(PAGE_SIZE):
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=f"a-{number}", limit=1))
    with PrefectQuotaStore() as ledger:
        assert ledger.acquire("z-none", 1, 60.0) is None
        ledger.create_limit("z-last", 5)
        ledger.create_limit("z-last", 7)
        assert ledger.acquire("z-last", 6, 60.0) is None
        lease = ledger.acquire("z-last", 4, 60.0)
        assert ledger.acquire("z-last", 2, 60.0) is None
        assert {
            name: (each.limit, each.taken) for name, each in ledger.read_limits(["z-last", "z-none"]).items()
        } == {"z-last": (5, 4)}
        assert ledger.renew(lease, 60.0)
        ledger.release(lease)
        ledger.release(lease)
        assert not ledger.renew(lease, 60.0)
        assert ledger.read_limits(["z-last"])["z-last"].taken == 0


def test_unreachable_server_raises_quota_store_error():
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        PrefectQuotaStore() as ledger,
        pytest.raises(QuotaStoreError, match="Prefect fails"),
    ):
        ledger.read_limits(["any"])
