"""Batches, the processes that run them, and places that fail."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from helpers.batch_assertions import new_batch
from helpers.runner_process import RunnerProcess

from batchline.engine.lease import active_lease
from batchline.engine.pipeline import run_local
from batchline.engine.services import Services
from batchline.storage.records.store import BatchRecord


@pytest.fixture
def make_services(make_services: Callable[..., Services]) -> Callable[..., Services]:
    """Services whose runs give requests in flight little grace."""
    return partial(make_services, grace_s=2.0)


@pytest.fixture
def create_batch(chat_file: Callable[..., Path]) -> Callable[..., BatchRecord]:
    """Record a batch of so many chat requests."""

    def make(services: Services, count: int, **options: Callable[[int], str]) -> BatchRecord:
        return new_batch(services, chat_file(count, **options))

    return make


@pytest.fixture
def in_background() -> Iterator[Callable[[Services, BatchRecord], Future[BatchRecord]]]:
    """Run batches on threads; what still runs at the test's end is interrupted."""
    begun: list[str] = []

    def begin(services: Services, batch: BatchRecord) -> Future[BatchRecord]:
        begun.append(batch.id)
        return pool.submit(run_local, services, batch.id)

    with ThreadPoolExecutor() as pool:
        yield begin
        for hold in filter(None, map(active_lease, begun)):
            hold.interrupt("the test is over")


@pytest.fixture
def start_runner() -> Iterator[Callable[..., RunnerProcess]]:
    """Start processes that run a batch with the services' settings; they end with the test."""
    started: list[RunnerProcess] = []

    def begin(services: Services, batch: BatchRecord, **options: str) -> RunnerProcess:
        runner = RunnerProcess(services.settings, batch.id, **options)
        started.append(runner)
        return runner

    yield begin
    for runner in started:
        runner.kill()


@pytest.fixture
def slow_to_validate(tmp_path: Path) -> Path:
    """A file of 800 requests that are odd enough, each of another model, to be checked for some seconds."""
    path = tmp_path / "slow-to-validate.jsonl"
    odd = {str(number): str(number) for number in range(600)}
    with path.open("w") as file:
        for number in range(800):
            body = {"model": f"model-{number}", "messages": [{"role": "user", "content": "?"}], "metadata": odd}
            line = {
                "custom_id": f"request-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": body,
            }
            file.write(json.dumps(line) + "\n")
    return path


class SmallDisk:
    """A file system of its own, which a test can fill and make larger."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def resize(self, size_kib: int) -> None:
        """Give it that size."""
        _mount(f"remount,size={size_kib}k", self.place)

    def fill(self) -> Path:
        """Take all the room that is left with a file, whose removal gives it back."""
        ballast = self.place / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return ballast
        raise AssertionError("a disk that takes anything")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of 1 MiB; only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small file system")
    try:
        _mount("size=1024k", place)
    except (OSError, subprocess.CalledProcessError) as refusal:
        pytest.skip(f"no small file system can be mounted here: {refusal}")
    yield SmallDisk(place)
    subprocess.run(["umount", "--lazy", place], check=True)


def _mount(options: str, place: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True, capture_output=True)
