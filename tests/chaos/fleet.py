"""Neurons and a gateway as systemd runs them: what ends is started again."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil

from ipc.client import NeuronClient
from ipc.errors import CortexError
from ipc.keys import generate, load_public, load_secret
from ipc.messages.conversation import Message
from ipc.messages.replies import HealthReply
from ipc.messages.requests import CountTokens, Health, Unload
from tests.chaos.network import Network
from tests.gateway.conftest import Keys
from tests.neuron.harness import ROOT, simulated
from tests.ports import free_ports

NEURONS = 3
GATEWAY_PROCESSES = 2
RESTART_SECONDS = 1.0  # RestartSec of the units is 2
STEP_SECONDS = 0.01
START_SECONDS = 30.0  # for a daemon or a process to be there, on a busy machine
ANSWER_SECONDS = 5.0  # for a neuron to say how it is


def models(number: int) -> list[dict[str, Any]]:
    """What neuron `number` has: three models everywhere, of which two fit; one with two ranks on two hosts,
    one on the last host alone."""
    plan = {"step_seconds": STEP_SECONDS, "load_seconds": 0.3, "prefill_tokens_per_second": 20_000.0}
    found = [simulated(name, memory="1GiB", **plan) for name in ("first", "second")]
    found.append(simulated("large", memory="2GiB", **plan))
    if number < 2:
        found.append(simulated("pair", memory="400MiB", settings={"ranks": 2}, **plan))
    if number == NEURONS - 1:
        found.append(simulated("rare", memory="500MiB", **plan))
    return found


MODELS = ("first", "second", "large", "pair", "rare")


class Service:
    """One daemon, which is started again when it ends.

    Attributes:
        starts: when each of its processes began, in seconds of the monotonic clock, and
        ends: when it ended.
    """

    def __init__(self, folder: Path, name: str, command: list[str], environment: dict[str, str]) -> None:
        self.name = name
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.log = folder / f"{name}.log"
        self.tmp = folder / "tmp"
        self._command, self._folder = command, folder
        self._environment = (
            os.environ
            | environment
            | {
                "TMPDIR": str(self.tmp),
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "HF_HOME": str(folder / "no-cache"),
            }
        )
        self.process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._keeper = asyncio.create_task(self._keep())

    async def _keep(self) -> None:
        while not self._stopping:
            with self.log.open("ab") as log:
                self.starts.append(time.monotonic())
                self.process = await asyncio.create_subprocess_exec(
                    *self._command,
                    cwd=self._folder,
                    env=self._environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            await self.process.wait()
            self.ends.append(time.monotonic())
            if self._stopping:
                return
            with suppress(ProcessLookupError):  # as systemd ends what a unit's first process leaves
                os.killpg(self.process.pid, signal.SIGKILL)
            await asyncio.sleep(RESTART_SECONDS)

    @property
    def pid(self) -> int:
        """Of the daemon; 0 while there is none."""
        alive = self.process is not None and self.process.returncode is None
        return self.process.pid if alive else 0

    def children(self, of: str = "") -> list[psutil.Process]:
        """Its processes below the first one, with `of` in their command lines."""
        found: list[psutil.Process] = []
        with suppress(psutil.Error):
            for each in psutil.Process(self.pid).children(recursive=True) if self.pid else ():
                with suppress(psutil.Error):  # it may end meanwhile
                    if of in " ".join(each.cmdline()):
                        found.append(each)
        return found

    async def end(self, number: signal.Signals, patience: float) -> int | None:
        """Its exit code; None: it had to be killed."""
        self._stopping = True
        if self.pid:
            self.process.send_signal(number)
        try:
            await asyncio.wait_for(asyncio.shield(self._keeper), patience)
        except TimeoutError:
            os.killpg(self.process.pid, signal.SIGKILL)
            await self._keeper
            return None
        return self.process.returncode


class Fleet:
    """Three neurons with keys of their own, and a gateway of two processes that asks for API keys."""

    def __init__(self, folder: Path, network: Network) -> None:
        self.folder, self.network = folder, network
        (folder / "tmp").mkdir(parents=True)
        self.state = folder / "state"
        self.state.mkdir()
        self.neurons: list[Service] = []
        self.gateway: Service | None = None
        self.clients: list[NeuronClient] = []
        port, metrics = free_ports(2)
        self.base, self.metrics = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics"

    async def start(self) -> None:
        await self.network.start(NEURONS)
        keys = Keys(self.state)
        key = await asyncio.to_thread(keys.create, "load", "--admin")
        self.headers = {"Authorization": f"Bearer {key}"}
        our_secret, our_public = generate(self.folder / "keys", "gateway")
        places = []
        for number in range(NEURONS):
            name = f"neuron{number}"
            secret, public = generate(self.folder / "keys", name)
            settings = {
                "name": name,
                "listen": self.network.listen(number),
                "key_file": str(secret),
                "allowed_keys": [str(our_public)],
                "devices": ["cpu"],
                "cpu": {"memory": "3GiB"},
                "standby": False,
                "only_configured": True,
                "memory": {"turn_seconds": 0.5, "wait_seconds": 20},
                "queue": {"wait_seconds": 20, "limit": 100},
                "step_deadline_seconds": 3,
                "models": models(number),
            }
            path = self.folder / f"{name}.yaml"
            path.write_text(json.dumps(settings))
            places.append(
                {"name": name, "endpoint": self.network.endpoint(number), "public_key": str(public)}
            )
            command = [*self.network.inside(number), *_module("neuron", "serve", "--config", str(path))]
            self.neurons.append(Service(self.folder, name, command, {}))
        gateway = {
            "listen": self.base.removeprefix("http://"),
            "metrics_listen": self.metrics.removeprefix("http://").removesuffix("/metrics"),
            "workers": GATEWAY_PROCESSES,
            "load_wait_seconds": 20,
            "lost_wait_seconds": 5,
            "key_file": str(our_secret),
        }
        config = {
            "gateway": gateway,
            "access": {"anonymous": False, "path": str(keys.store)},
            "store": {"path": str(self.state / "responses.db")},
            "neurons": places,
        }
        path = self.folder / "cortex.yaml"
        path.write_text(json.dumps(config))
        command = _module("gunicorn", "--config", "python:gateway.gunicorn_conf", "gateway:app")
        self.gateway = Service(self.folder, "gateway", command, {"CORTEX_CONFIG": str(path)})
        self.clients = [
            NeuronClient(
                self.network.endpoint(number),
                secret=load_secret(our_secret),
                server_public=load_public(place["public_key"]),
            )
            for number, place in enumerate(places)
        ]
        for client in self.clients:
            client.start()

    @property
    def services(self) -> list[Service]:
        return [*self.neurons, *([self.gateway] if self.gateway is not None else [])]

    def ranks(self) -> list[psutil.Process]:
        """The workers of all models."""
        return [each for neuron in self.neurons for each in neuron.children("-m workers")]

    @property
    def is_connected(self) -> bool:
        """Whether each process of the gateway has its connection to each neuron. Which one answers a request
        is chance."""
        neurons = {self.network.endpoint(number).removeprefix("tcp://") for number in range(NEURONS)}
        whole = 0
        for process in self.gateway.children():
            with suppress(psutil.Error):
                links = [link for link in process.net_connections("tcp") if link.status == "ESTABLISHED"]
                whole += neurons <= {f"{link.raddr.ip}:{link.raddr.port}" for link in links}
        return whole == GATEWAY_PROCESSES

    def text_processes(self) -> list[psutil.Process]:
        return [each for neuron in self.neurons for each in neuron.children("-m neuron.preparation")]

    async def health(self, number: int) -> HealthReply | None:
        """What neuron `number` says of itself; None: nothing."""
        try:
            return await self.clients[number].ask(Health(id=0), ANSWER_SECONDS)
        except CortexError:
            return None

    async def count(self) -> None:
        """Have each neuron count a long prompt, for which it has a text process."""
        prompt = [Message(role="user", content="word " * 20_000)]
        for client in self.clients:
            await client.ask(CountTokens(id=0, model="first", messages=prompt), START_SECONDS)

    async def unload(self) -> None:
        """Of each neuron all models."""
        for number, client in enumerate(self.clients):
            for model in models(number):
                with suppress(CortexError):
                    await client.ask(Unload(id=0, model=model["id"], force=True), ANSWER_SECONDS)

    async def end(self, patience: float) -> dict[str, int | None]:
        """Stop everything; the exit code of each daemon that did not end well."""
        for client in self.clients:
            client.close()
        codes = {
            service.name: await service.end(signal.SIGTERM, patience) for service in reversed(self.services)
        }
        await self.network.close()
        return {name: code for name, code in codes.items() if code != 0}


async def until(condition: Callable[[], Any], patience: float) -> Any:
    """The first true value of `condition`, which may be a coroutine function; else its last one."""
    deadline = time.monotonic() + patience
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value or time.monotonic() > deadline:
            return value
        await asyncio.sleep(0.1)


async def answers(fleet: Fleet, client: httpx.AsyncClient) -> bool:
    """Whether a gateway process sees every neuron."""
    with suppress(httpx.TransportError):
        health = (await client.get("/health")).json()
        return all(neuron["healthy"] for neuron in health["neurons"])
    return False


def _module(*words: str) -> list[str]:
    return [sys.executable, "-m", "ipc.lifeline", str(os.getpid()), *words]
