"""The wires between a gateway and its neurons, which can be cut: network namespaces, else proxies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Protocol

from tests.ipc.links import Link
from tests.ports import free_ports

PORT = 13131


class Network(Protocol):
    """`listen` is where neuron number `n` listens, `endpoint` where the gateway finds it."""

    name: str

    async def start(self, count: int) -> None: ...
    def listen(self, number: int) -> str: ...
    def endpoint(self, number: int) -> str: ...
    def inside(self, number: int) -> list[str]:
        """What a command begins with that runs where the neuron is."""

    async def cut(self, number: int) -> None: ...
    async def heal(self, number: int) -> None: ...
    async def close(self) -> None: ...


def permitted() -> bool:
    """Whether this process may be one of a network namespace, with others below it and cables to them."""
    probe = "ip link add wire type veth peer name other && unshare --net nsenter --version"
    command = ["unshare", "--map-root-user", "--net", "sh", "-c", probe]
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except OSError:  # there is no unshare
        return False


def inside_namespace(command: list[str]) -> list[str]:
    """`command`, in a namespace whose loopback is up and that holds nothing else."""
    script = 'ip link set lo up && exec "$@"'
    return ["unshare", "--map-root-user", "--net", "sh", "-c", script, "sh", *command]


class Namespaces:
    """A namespace for each neuron, and a cable to each. One that is cut says nothing: packets are lost."""

    name = "network namespaces"

    def __init__(self) -> None:
        self._holders: list[asyncio.subprocess.Process] = []

    async def start(self, count: int) -> None:
        for number in range(count):
            # It ends when its pipe does, whatever becomes of us.
            command = ["unshare", "--net", "sh", "-c", "echo; exec cat"]
            pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
            holder = await asyncio.create_subprocess_exec(*command, **pipes)
            self._holders.append(holder)
            await holder.stdout.readline()  # it is there
            ours, theirs = f"10.86.{number}.1/30", f"10.86.{number}.2/30"
            peer = ("peer", "name", "wire", "netns", str(holder.pid))
            _ip("link", "add", f"wire{number}", "type", "veth", *peer)
            _ip("address", "add", ours, "dev", f"wire{number}")
            _ip("link", "set", f"wire{number}", "up")
            _ip("address", "add", theirs, "dev", "wire", inside=self.inside(number))
            for device in ("lo", "wire"):  # ranks of one model meet over loopback
                _ip("link", "set", device, "up", inside=self.inside(number))

    def listen(self, number: int) -> str:
        return f"tcp://10.86.{number}.2:{PORT}"

    endpoint = listen

    def inside(self, number: int) -> list[str]:
        return ["nsenter", "--net", f"--target={self._holders[number].pid}"]

    async def cut(self, number: int) -> None:
        _ip("link", "set", f"wire{number}", "down")

    async def heal(self, number: int) -> None:
        _ip("link", "set", f"wire{number}", "up")

    async def close(self) -> None:
        for holder in self._holders:
            holder.stdin.close()
            await asyncio.wait_for(holder.wait(), 10)


class Proxies:
    """A TCP proxy before each neuron. A cut one ends its connections, and takes no new ones."""

    name = "proxies"

    async def start(self, count: int) -> None:
        self._ports = free_ports(count)
        self._links = [Link(port) for port in self._ports]
        self._endpoints = [await link.start() for link in self._links]

    def listen(self, number: int) -> str:
        return f"tcp://127.0.0.1:{self._ports[number]}"

    def endpoint(self, number: int) -> str:
        return self._endpoints[number]

    def inside(self, number: int) -> list[str]:
        return []

    async def cut(self, number: int) -> None:
        self._links[number].refuses = True
        self._links[number].cut()

    async def heal(self, number: int) -> None:
        self._links[number].refuses = False

    async def close(self) -> None:
        for link in self._links:
            await link.close()


def _ip(*words: str, inside: list[str] | tuple[()] = ()) -> None:
    result = subprocess.run([*inside, "ip", *words], capture_output=True, text=True, timeout=10, check=False)
    if result.returncode:
        sys.exit(f"ip {' '.join(words)}: {result.stderr.strip()}")
