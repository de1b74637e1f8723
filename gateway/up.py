"""`cortex up`: gateway, neuron and models on this host, from one command until Ctrl-C.

Both daemons are children of this process, with configurations in a folder that goes when it goes. A child
that ends is started again, later each time; when this process ends, however it ends, so do they.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from gateway.config import split_address
from ipc.client import NeuronClient
from ipc.errors import CortexError
from ipc.messages import Failed, Hello, Load, Progress

LOOPBACK = "127.0.0.1"
START_SECONDS = 60.0  # for a daemon to answer, on a slow and busy host
STOP_SECONDS = 3.0  # for the daemons to end themselves; what is left is killed
POLL_SECONDS = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # before a daemon is started again
STEADY_SECONDS = 60.0  # one that lived so long had a good start


class UpError(Exception):
    """Why `cortex up` cannot start or go on, in one sentence."""


# --- what was asked for ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the children are told.

    Attributes:
        listen: the API's host and port.
        metrics_port: on loopback.
        neuron_port: on loopback.
        models: entries of the neuron's `models`.
        devices: the neuron's `devices`; None: every one that it finds.
    """

    listen: tuple[str, int]
    metrics_port: int
    neuron_port: int
    models: list[dict[str, Any]]
    devices: list[str] | None

    @property
    def base(self) -> str:
        """The API's address for a client on this host."""
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.listen[0], self.listen[0])
        return f"http://{_address(host, self.listen[1])}"

    @property
    def neuron_endpoint(self) -> str:
        return f"tcp://{LOOPBACK}:{self.neuron_port}"

    def neuron_settings(self) -> dict[str, Any]:
        return {
            "listen": self.neuron_endpoint,
            "devices": self.devices,
            "models": self.models,
            "log_level": "WARNING",
        }

    def gateway_settings(self) -> dict[str, Any]:
        return {
            "gateway": {
                "listen": _address(*self.listen),
                "metrics_listen": f"{LOOPBACK}:{self.metrics_port}",
                "log_level": "WARNING",
            },
            "neurons": [{"name": socket.gethostname(), "endpoint": self.neuron_endpoint}],
        }


def make_plan(models: Sequence[str], dtype: str | None, ranks: int, device: str | None, listen: str) -> Plan:
    """Check what can be checked before anything starts, and choose the ports that nobody named.

    Raises:
        UpError: naming the option that cannot be followed.
    """
    devices = parse_devices(device) if device is not None else None
    if devices is not None and devices != ["cpu"] and ranks > len(devices):
        raise UpError(f"--ranks {ranks} needs as many devices, and --device {device} names {len(devices)}")
    entries = [model_entry(name, dtype, ranks, devices) for name in models]
    ids = [entry["id"] for entry in entries]
    for name in ids:
        if ids.count(name) > 1:
            raise UpError(f"--model: two models would have the id {name!r}")
    try:
        host, port = split_address(listen)
    except ValueError as error:
        raise UpError(f"--listen: {error}") from error
    with free_socket(host, port) as api:
        port = api.getsockname()[1]
        try:
            metrics = free_socket(LOOPBACK, port + 1 if port < 65535 else 0)
        except UpError:
            metrics = free_socket(LOOPBACK, 0)
        with metrics, free_socket(LOOPBACK, 0) as neuron:
            return Plan((host, port), metrics.getsockname()[1], neuron.getsockname()[1], entries, devices)


def parse_devices(text: str) -> list[str]:
    """The devices meant by `cpu`, `cuda:0,1` or `cuda:0,cuda:1`; UpError when it means none."""
    if text == "cpu":
        return ["cpu"]
    match = re.fullmatch(r"cuda:(\d+(?:,(?:cuda:)?\d+)*)", text)
    if match is None:
        raise UpError(f"--device {text}: expected cpu, cuda:0 or cuda:0,1")
    devices = [f"cuda:{int(number)}" for number in match[1].replace("cuda:", "").split(",")]
    if len(set(devices)) < len(devices):
        raise UpError(f"--device {text}: a device is named twice")
    return devices


def model_entry(name: str, dtype: str | None, ranks: int, devices: list[str] | None) -> dict[str, Any]:
    """The neuron's settings of the model that `--model NAME` means."""
    entry: dict[str, Any] = {"id": name, "ranks": ranks, "pin": True}
    if dtype is not None:
        entry["dtype"] = dtype
    if devices == ["cpu"]:
        entry["devices"] = devices
    folder = Path(name).expanduser()
    if name == "simulated":
        entry["simulated"] = {}
    elif name != "demo" and (folder.is_dir() or name.startswith(("/", ".", "~"))):
        if not folder.is_dir():
            raise UpError(f"--model {name}: there is no such folder")
        if not (folder / "config.json").is_file():
            raise UpError(f"--model {name}: the folder holds no config.json, so no Hugging Face checkpoint")
        entry |= {"id": folder.resolve().name, "path": str(folder.resolve())}
    return entry


def free_socket(host: str, port: int) -> socket.socket:
    """A socket bound to `host:port` (0: a free one), as proof that a server can have it; UpError if none can."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UpError(f"--listen: {host} is no address of this host ({error.strerror})") from error
    probe = socket.socket(family, kind)
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind(address)
    except OSError as error:
        probe.close()
        if error.errno == errno.EADDRINUSE:
            raise UpError(f"port {port} on {host} is in use; choose another: --listen {host}:PORT") from error
        raise UpError(f"--listen: cannot listen on {host}:{port}: {error.strerror}") from error
    return probe


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


# --- what happens ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class Child:
    """One daemon and how to have it again."""

    name: str
    arguments: list[str]  # of Python: -m module ...
    goodbye: signal.Signals  # ends it without waiting for requests
    process: asyncio.subprocess.Process | None = None


class Narrator:
    """Says what happens: on a terminal in a line that moves, elsewhere in plain lines."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._status = console.status("") if console.is_terminal else None
        self._stage = ""

    def doing(self, stage: str, detail: str = "") -> None:
        """What is waited for now. `detail` moves too fast for plain lines."""
        if self._status is not None:
            self._status.update(f"{stage} {detail}")
            self._status.start()
        elif stage != self._stage:
            self.say(stage)
        self._stage = stage

    def say(self, *lines: str) -> None:
        for line in lines:  # never wrapped: they are there to be copied
            self.console.print(line, soft_wrap=True, markup=False, highlight=False)

    def quiet(self) -> None:
        if self._status is not None:
            self._status.stop()


@dataclass(slots=True)
class Up:
    """A running `cortex up`."""

    plan: Plan
    narrator: Narrator
    folder: Path
    announced: bool = False  # everything has been there once
    children: list[Child] = field(init=False)

    def __post_init__(self) -> None:
        (self.folder / "neuron.yaml").write_text(json.dumps(self.plan.neuron_settings()))
        (self.folder / "cortex.yaml").write_text(json.dumps(self.plan.gateway_settings()))
        neuron = ["-m", "neuron", "serve", "--config", str(self.folder / "neuron.yaml")]
        gunicorn = ["-m", "gunicorn", "--config", "python:gateway.gunicorn_conf", "gateway:app"]
        self.children = [
            Child("neuron", neuron, signal.SIGTERM),
            Child("gateway", gunicorn, signal.SIGINT),
        ]

    async def run(self) -> None:
        """Until a signal says that it is enough; UpError when it could not start."""
        loop = asyncio.get_running_loop()
        enough = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, enough.set)
        work, end = asyncio.create_task(self._work()), asyncio.create_task(enough.wait())
        try:
            await asyncio.wait({work, end}, return_when=asyncio.FIRST_COMPLETED)
            if enough.is_set():
                self.narrator.doing("stopping")
            else:
                await work
        finally:
            for task in (work, end):
                task.cancel()
            await asyncio.gather(work, end, return_exceptions=True)
            await self._end_children()
            self.narrator.quiet()

    async def _work(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for child in self.children:
                    group.create_task(self._keep(child))
                await self._announce()
        except* UpError as group:
            raise group.exceptions[0] from None

    async def _keep(self, child: Child) -> None:
        """Start `child`, and again whenever it ends; before everything was there once, its end is ours."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while True:
            started = loop.time()
            child.process = await self._start(child)
            code = await child.process.wait()
            _kill_group(child)  # what it left holds its port
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            if not self.announced:
                raise UpError(f"the {child.name} ended while it started ({how}); what it said stands above")
            if loop.time() - started > STEADY_SECONDS:
                pause = FIRST_PAUSE
            self.narrator.say(f"the {child.name} ended ({how}) and is started again in {pause:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _start(self, child: Child) -> asyncio.subprocess.Process:
        # A group of its own: the terminal's Ctrl-C is for us, and we end the children in order.
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "ipc.lifeline", str(os.getpid())),
            *child.arguments,
            cwd=self.folder,
            env=os.environ | {"CORTEX_CONFIG": str(self.folder / "cortex.yaml"), "TMPDIR": str(self.folder)},
            stdin=asyncio.subprocess.DEVNULL,
            process_group=0,
        )

    async def _announce(self) -> None:
        """Say what is being waited for until all is there, then how to use it."""
        self.narrator.doing("starting the neuron")
        client = NeuronClient(self.plan.neuron_endpoint)
        client.start()
        try:
            await client.ask(Hello(id=0, client="cortex up"), START_SECONDS)
            for entry in self.plan.models:
                await self._load(client, entry["id"])
        except CortexError as error:
            raise UpError(error.message) from error
        finally:
            client.close()
        self.narrator.doing("starting the gateway")
        await self._gateway_is_ready()
        self.announced = True
        self.narrator.quiet()
        self._explain()

    async def _load(self, client: NeuronClient, model: str) -> None:
        stage = f"loading {model}"
        self.narrator.doing(stage)
        async for reply in client.open(Load(id=0, model=model)):
            if isinstance(reply, Progress):
                done = "" if reply.fraction is None else f"{reply.fraction:.0%}"
                self.narrator.doing(stage, f"{done} {reply.message}".strip())
            elif isinstance(reply, Failed):
                raise reply.error()

    async def _gateway_is_ready(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                while await self._ask_gateway("/ready") != 200:
                    await asyncio.sleep(POLL_SECONDS)
        except TimeoutError:
            raise UpError(f"the gateway at {self.plan.base} is not ready after {START_SECONDS:g} s") from None

    async def _ask_gateway(self, path: str) -> int:
        """The HTTP status of a GET; 0 when nothing answers."""
        host, port = self.plan.base.removeprefix("http://").rsplit(":", 1)
        try:
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:
            return 0
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = re.match(rb"HTTP/1\.1 (\d{3})", await reader.readline())
            return int(answer[1]) if answer else 0
        except OSError:
            return 0
        finally:
            writer.close()

    def _explain(self) -> None:
        models = [entry["id"] for entry in self.plan.models]
        body = {"model": models[0], "messages": [{"role": "user", "content": "What is 3 plus 4?"}]}
        self.narrator.say(
            f"cortex is up at {self.plan.base}/v1 with {', '.join(models)}; "
            f"metrics at http://{LOOPBACK}:{self.plan.metrics_port}/metrics",
            "Ask it something:",
            f"  curl {self.plan.base}/v1/chat/completions -H 'Content-Type: application/json' "
            f"-d '{json.dumps(body)}'",
            "Ctrl-C ends it.",
        )

    async def _end_children(self) -> None:
        running = [child for child in self.children if child.process and child.process.returncode is None]
        for child in running:
            with suppress(ProcessLookupError):
                child.process.send_signal(child.goodbye)
        ends = asyncio.gather(*(child.process.wait() for child in running))
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(ends), STOP_SECONDS)
        for child in running:
            _kill_group(child)
        await ends


def _kill_group(child: Child) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.process.pid, signal.SIGKILL)


def run(plan: Plan, console: Console) -> None:
    """Start everything and stay until SIGINT, SIGTERM or SIGHUP; UpError when it could not start."""
    with tempfile.TemporaryDirectory(prefix="cortex-up-") as folder:
        asyncio.run(Up(plan, Narrator(console), Path(folder)).run())
