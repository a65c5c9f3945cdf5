"""Fixtures for all folders."""

import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("helpers")  # before any of them is imported

from helpers import shared_servers
from helpers.chromium import started_chromium
from helpers.request_files import write_requests
from helpers.storage_servers import Postgres, S3Server
from hypothesis import settings

from batchline.engine.services import Services
from batchline.models.settings import Settings, load_settings
from batchline.models.upstreams import Upstream
from batchline.simulate import Simulator, SimulatorOptions
from batchline.storage.objects.select import open_objects
from batchline.storage.records.store import open_records

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C and passes that on to the commands that the tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Each command that a test starts would compile all of our modules anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# How long an example takes tells what else the machine has to do.
settings.register_profile("tests", deadline=None)
# A change is judged by examples that are the same each time; the others are looked for where people work.
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "tests")


SERVER_LOGS = ".server-logs"
"""The folder that has what the shared servers wrote in the last run that failed."""

LONGEST = (
    "system/test_two_hosts.py",
    "system/test_crash_recovery.py",
    "system/test_production.py",
    "system/test_automations.py",
    "system/test_task_runners.py",
    "system/test_prefect_quota.py",
    "system/test_deployment_runner.py",
    "system/test_third_party_programs.py",
    "web/test_browser.py",
    "cli/test_run_with_prefect.py",
    "upstream/test_error_classification.py",
    "upstream/test_quota_sharing.py",
    "api/test_auth.py",
    "cli/test_batches_command.py",
    "api/test_file_content.py",
    "api/test_request_limits.py",
    "cli/test_run_command.py",
    "client/test_batch_state_machine.py",
    "api/test_openapi.py",
    "sync/test_sync_pass_races.py",
    "cli/test_run_interruption.py",
    "client/test_concurrent_operations.py",
    "storage/test_batch_list_properties.py",
    "faults/test_killed_processes.py",
    "client/test_batch_retries.py",
)
"""The files that are started first, so that none is left when the other workers are done; the slowest first."""


@pytest.hookimpl(tryfirst=True)  # before the tests are chosen by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent.name == "system":
            item.add_marker("system")
    begun = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: begun.get(item.path, len(LONGEST)))


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # that is, in the process that began the run
        shared_servers.begin()
        config.add_cleanup(shared_servers.end)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Restart a shared server that has died, and report its end with the test that failed meanwhile."""
    report = yield
    if report.failed:
        for kind, words in shared_servers.revive():
            report.sections.append((f"the {kind} server that all tests share had died", words))
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not hasattr(session.config, "workerinput") and exitstatus == pytest.ExitCode.TESTS_FAILED:
        shared_servers.keep_logs(session.config.rootpath / SERVER_LOGS)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.TESTS_FAILED:
        terminalreporter.write_line(f"What the servers of this run wrote is in {SERVER_LOGS}/.")


@pytest.fixture(autouse=True)
def isolated_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep each test away from the settings and the data of the person who runs it."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BATCHLINE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BATCHLINE_SHARE_BUDGETS", "false")  # except in tests/system/test_prefect_quota.py
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def idle_simulators() -> Iterator[list[Simulator]]:
    """Simulators without options that no test uses at the moment; starting one takes a fifth of a second."""
    idle: list[Simulator] = []
    yield idle
    for each in idle:
        each.stop()


@pytest.fixture
def start_simulator(idle_simulators: list[Simulator]) -> Iterator[Callable[..., Simulator]]:
    """Start simulators with the options given and counters at zero; they end with the test."""
    started: list[Simulator] = []

    def start(**options: object) -> Simulator:
        if not options and idle_simulators:
            simulator = idle_simulators.pop()
            simulator.reset()
        else:
            simulator = Simulator(SimulatorOptions.model_validate(options))
            simulator.start()
        started.append(simulator)
        return simulator

    yield start
    for each in started:
        if each.options == SimulatorOptions():
            idle_simulators.append(each)
        else:
            each.stop()


@pytest.fixture
def make_services() -> Iterator[Callable[..., Services]]:
    """Make services on this test's own directory that call the given upstream, with the given settings."""
    made: list[Services] = []

    def make(base_url: str, *, upstream: dict[str, object] | None = None, **settings: object) -> Services:
        server = Upstream.model_validate(
            {"base_url": base_url, "backoff_base_s": 0.01, "backoff_cap_s": 0.05, **(upstream or {})}
        )
        chosen: Settings = load_settings(**{"upstreams": [server], "flush_interval_s": 0.2, **settings})
        shared_servers.copy_sqlite(chosen)
        services = Services(settings=chosen, store=open_objects(chosen), records=open_records(chosen))
        made.append(services)
        return services

    yield make
    for services in made:
        if "dispatcher" in services.__dict__:
            services.dispatcher.close()
        services.records.close()


@pytest.fixture(scope="session")
def s3_server() -> S3Server:
    return shared_servers.s3_server()


@pytest.fixture(scope="session")
def postgres() -> Postgres:
    """A server that no test may stop: other workers use it too."""
    return shared_servers.postgres()


@pytest.fixture(scope="session")
def migrated(postgres: Postgres) -> str:
    """The name of a PostgreSQL database with all tables, to copy."""
    return shared_servers.migrated()


@pytest.fixture
def postgres_database(postgres: Postgres, migrated: str) -> Iterator[dict[str, object]]:
    """Settings of a PostgreSQL database that has all tables."""
    name = postgres.create(template=migrated)
    yield {"database_url": postgres.url(name)}
    postgres.drop(name)


@pytest.fixture(scope="session")
def prefect_api() -> str:
    """The URL of a Prefect server's API, whose runs are those of all workers."""
    return shared_servers.prefect().url


@pytest.fixture(scope="session")
def prefect_server(prefect_api: str) -> Iterator[None]:
    """Make flows in this process use the Prefect server that all workers share."""
    from helpers.prefect_settings import using_prefect  # noqa: PLC0415 - Prefect takes a second to import

    with using_prefect(prefect_api):
        yield


# Not for the session: while playwright drives it, other tests could not run event loops of their own.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    with started_chromium() as browser:
        yield browser


@pytest.fixture
def chat_file(tmp_path: Path) -> Callable[..., Path]:
    """Write a file with a number of chat requests that have different prompts."""
    return lambda count, **options: write_requests(tmp_path / f"requests-{count}.jsonl", count, **options)
