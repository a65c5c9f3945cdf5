"""Hosts of their own on this machine: network namespaces with addresses on one network, and what runs on them."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

NETWORK = "10.231.77"
HUB = f"{NETWORK}.1"
"""This machine's own address on the hosts' network."""


class Host:
    """A network namespace, with an address of its own; dies at once with all that runs in it."""

    def __init__(self, name: str, address: str, log: Path) -> None:
        self.name = name
        self.address = address
        self.log = log
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, *command: str | Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Run the command there in the background."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *map(str, command)],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.log.parent,
                start_new_session=True,
            )
        self._started.append(process)
        return process

    def kill(self) -> None:
        """Kill everything that runs there, and take it from the network."""
        _ip("-n", self.name, "link", "set", "eth0", "down")
        while pids := _output("netns", "pids", self.name).split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        for process in self._started:
            process.wait()


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Two hosts that reach each other, and this machine at `HUB`."""
    tag = f"{os.getpid() % 100_000}"
    hub, first, second = (f"bl-{kind}-{tag}" for kind in ("hub", "one", "two"))
    link = f"blh{tag}"
    hosts = [Host(name, f"{NETWORK}.{at}", folder / f"{name}.log") for at, name in ((2, first), (3, second))]
    try:
        for name in (hub, first, second):
            _ip("netns", "add", name)
        _ip("-n", hub, "link", "add", "switch", "type", "bridge")
        _ip("-n", hub, "link", "set", "switch", "up")
        for host in hosts:
            _ip("-n", host.name, "link", "set", "lo", "up")
            _ip(
                "link",
                "add",
                "eth0",
                "netns",
                host.name,
                "type",
                "veth",
                "peer",
                "name",
                host.name[:14],
                "netns",
                hub,
            )
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.name, "link", "set", "eth0", "up")
            _plug(hub, host.name[:14])
        _ip("link", "add", link, "type", "veth", "peer", "name", "machine", "netns", hub)
        _ip("address", "add", f"{HUB}/24", "dev", link)
        _ip("link", "set", link, "up")
        _plug(hub, "machine")
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            with suppress(subprocess.CalledProcessError):
                host.kill()
        for name in (first, second, hub):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def _plug(hub: str, link: str) -> None:
    _ip("-n", hub, "link", "set", link, "master", "switch")
    _ip("-n", hub, "link", "set", link, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _output(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


class Relay:
    """Passes connections to an address of this machine that hosts can reach on to a port of its loopback."""

    def __init__(self, port: int, host: str = HUB) -> None:
        self._target = port
        self._listener = socket.create_server((host, port), backlog=512)
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                here, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=_join, args=(here, self._target), daemon=True).start()


def _join(here: socket.socket, port: int) -> None:
    with here, suppress(OSError), socket.create_connection(("127.0.0.1", port)) as there:
        back = threading.Thread(target=_pass_on, args=(there, here), daemon=True)
        back.start()
        _pass_on(here, there)
        back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(2**16):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
