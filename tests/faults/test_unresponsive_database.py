"""A database that says nothing any more: the run ends, its answers are saved, and another can continue."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from helpers.batch_assertions import check_results, count_saved, received, resume_batch
from helpers.polling import until

from batchline.models.errors import LeaseLost, StorageFault
from batchline.models.settings import Settings, load_settings
from batchline.storage.records import connection_timeouts
from batchline.storage.records.store import open_records

pytestmark = pytest.mark.system


class TcpRelay:
    """Passes connections on to a port of this machine until it is cut, and then keeps them open in silence."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._is_cut = threading.Event()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._is_cut.set()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in (self._listener, *self._open):
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            there = socket.create_connection(("127.0.0.1", self._target))
            self._open += [here, there]
            for ends in ((here, there), (there, here)):
                threading.Thread(target=self._pass_on, args=ends, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(2**16):
                if self._is_cut.is_set():
                    threading.Event().wait()
                target.sendall(data)
            target.close()


@pytest.fixture
def relay(postgres) -> Iterator[TcpRelay]:
    made = TcpRelay(postgres.port)
    yield made
    made.close()


@pytest.fixture
def relayed_database(relay: TcpRelay, postgres, postgres_database) -> dict[str, object]:
    """Settings of a database that is reached by the line."""
    url = str(postgres_database["database_url"])
    return {"database_url": url.replace(f":{postgres.port}/", f":{relay.port}/")}


def test_run_with_unresponsive_database_saves_answers_and_ends(
    relay,
    relayed_database,
    postgres_database,
    start_simulator,
    make_services,
    create_batch,
    in_background,
    monkeypatch,
):
    monkeypatch.setattr(connection_timeouts, "MAX_USE_S", 8.0)
    monkeypatch.setattr(connection_timeouts, "WATCHDOG_INTERVAL_S", 0.5)
    simulator = start_simulator(latency_s=0.5)
    options = {"upstream": {"max_in_flight": 16}, "lease_s": 4.0, "flush_interval_s": 60.0}
    services = make_services(simulator.base_url, **options, **relayed_database)
    batch = create_batch(services, 400)
    run = in_background(services, batch)
    until(lambda: received(simulator) > 16)

    relay.cut()
    with pytest.raises(LeaseLost, match=r"database has not answered|no heartbeat"):
        run.result(60)
    sent = received(simulator)
    assert count_saved(services, batch) == sent < 400

    again = make_services(simulator.base_url, **options, **postgres_database)
    check_results(again, resume_batch(again, batch.id), 400)
    assert received(simulator) == 400


def test_query_without_reply_raises_storage_fault(relay, relayed_database, monkeypatch):
    monkeypatch.setattr(connection_timeouts, "MAX_USE_S", 1.0)
    monkeypatch.setattr(connection_timeouts, "WATCHDOG_INTERVAL_S", 0.2)
    records = open_records(load_settings(**relayed_database))
    assert records.find_batch_of_flow_run("none") is None

    relay.cut()
    with pytest.raises(StorageFault, match="database failed"):
        records.find_batch_of_flow_run("none")


def test_connections_detect_dead_peer_and_limit_statement_time(postgres_database):
    settings: Settings = load_settings(**postgres_database)
    records = open_records(settings)
    with records._engine.connect() as connection:
        shown = connection.exec_driver_sql("SHOW statement_timeout").scalar_one()
        driver = connection.connection.driver_connection
        assert driver is not None
        with socket.socket(fileno=driver.fileno()) as relay:
            kept_alive = relay.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            idle_s = relay.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
            unanswered_ms = relay.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
            relay.detach()
    records.close()

    assert (shown, kept_alive, idle_s, unanswered_ms) == ("30s", 1, 30, 30_000)


def test_timeouts_in_database_url_are_kept(postgres_database):
    url = f"{postgres_database['database_url']}?tcp_user_timeout=7000&options=-c%20statement_timeout%3D100"
    records = open_records(load_settings(database_url=url))
    with records._engine.connect() as connection:
        assert connection.connection.driver_connection.info.get_parameters()["tcp_user_timeout"] == "7000"
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar_one() == "100ms"
    records.close()


def test_watchdog_stops_when_idle_and_restarts(postgres_database, monkeypatch):
    monkeypatch.setattr(connection_timeouts, "WATCHDOG_INTERVAL_S", 0.05)
    before = watchdogs()
    records = open_records(load_settings(**postgres_database))

    for _ in range(2):
        assert records.find_batch_of_flow_run("none") is None
        until(lambda: watchdogs() <= before)
    records.close()


def watchdogs() -> set[int | None]:
    return {thread.ident for thread in threading.enumerate() if thread.name == "database watchdog"}
