"""A fake neuron in a thread, and gateways under real gunicorn in front of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from typer.testing import CliRunner

from gateway.commands.cli import app
from tests.gateway.fake_neuron import FakeNeuron
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
PATIENCE = 150.0  # seconds: for what takes milliseconds on a quiet machine


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait until `condition` gives something true, and return that."""
    deadline = time.monotonic() + PATIENCE
    while not (result := condition()):
        assert time.monotonic() < deadline, f"it never came to be: {what}"
        time.sleep(0.01)
    return result


class NeuronThread:
    """A `FakeNeuron` on a loop of its own."""

    def __init__(self, endpoint: str = "tcp://127.0.0.1:0", **settings: Any) -> None:
        self.neuron = FakeNeuron(endpoint, **settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self.neuron.start)
        self.endpoint = self.neuron.endpoint

    def _do(self, action: Callable[[], None]) -> None:
        done: Future[None] = Future()

        def run() -> None:
            try:
                done.set_result(action())
            except Exception as error:
                done.set_exception(error)

        self._loop.call_soon_threadsafe(run)
        done.result(PATIENCE)

    def close(self) -> None:
        if self._thread.is_alive():
            self._do(self.neuron.close)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(PATIENCE)
            self._loop.close()

    def let_fail(self, *_: object) -> None:
        """See `FakeNeuron`. As a hook of a client for the responses it gets, it is called in time."""
        self._loop.call_soon_threadsafe(self.neuron.let_fail)

    def working(self, model: str) -> int:
        """Requests to that model that are open now."""
        return sum(work.request.model == model for work in list(self.neuron.work.values()))


class GatewayProcess:
    """`gunicorn gateway:app`, from the repository, with a configuration of its own."""

    def __init__(
        self,
        folder: Path,
        endpoint: str,
        *arguments: str,
        aliases: dict[str, str] | None = None,
        store: dict[str, Any] | None = None,
        neurons: dict[str, str] | None = None,
        access: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.port, self.metrics_port = free_ports(2)
        self.base = f"http://127.0.0.1:{self.port}"
        gateway = {
            "listen": f"127.0.0.1:{self.port}",
            "metrics_listen": f"127.0.0.1:{self.metrics_port}",
            "body_limit": "256KiB",
        }
        self.config = {
            "gateway": gateway | settings,
            "eviction": {"strategy": "priority", "defrag_after_cycles": 7},
            "store": {"path": str(folder / "responses.db")} | (store or {}),
            "access": {"path": str(folder / "keys.db")} | (access or {}),
            "aliases": aliases or {},
            "neurons": [
                {"name": name, "endpoint": each}
                for name, each in ({"fake": endpoint} | (neurons or {})).items()
            ],
        }
        self._clients = ExitStack()  # that are open until it is stopped
        path = folder / "cortex.yaml"
        path.write_text(json.dumps(self.config))
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", *arguments, "gateway:app"],
                cwd=ROOT,
                env=os.environ | {"CORTEX_CONFIG": str(path), "TMPDIR": str(folder)},
                stdout=log,
                stderr=log,
            )

    def wait_ready(self) -> GatewayProcess:
        eventually(self._ready, f"ready; its log: {self.log}")
        return self

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.base}/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def workers(self) -> list[int]:
        """The process ids of the gunicorn processes that serve."""
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def stop(self) -> None:
        """End it as Ctrl-C does."""
        self._clients.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise

    def metrics(self) -> dict[str, float]:
        """Every series, by its name with labels."""
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False).text
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.base}/v1",
            api_key="any",
            max_retries=0,
            timeout=PATIENCE,
            http_client=self._clients.enter_context(httpx.Client(trust_env=False)),
        )


def client_of(gateway: GatewayProcess, neuron: NeuronThread) -> httpx.Client:
    """A client of `gateway`. What shall fail at `neuron` in mid-answer does so once the answer has begun."""
    hooks = {"response": [neuron.let_fail]}
    return httpx.Client(base_url=gateway.base, trust_env=False, timeout=PATIENCE, event_hooks=hooks)


@pytest.fixture(scope="package")
def neuron() -> Iterator[NeuronThread]:
    """A neuron that stays."""
    thread = NeuronThread()
    yield thread
    thread.close()


@pytest.fixture(scope="package")
def gateway(neuron: NeuronThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway of one process that stays."""
    process = GatewayProcess(tmp_path_factory.mktemp("gateway"), neuron.endpoint)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


@pytest.fixture
def http(gateway: GatewayProcess, neuron: NeuronThread) -> Iterator[httpx.Client]:
    """A plain client of it."""
    with client_of(gateway, neuron) as client:
        yield client


@pytest.fixture(scope="module")
def pair(neuron: NeuronThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway of two processes."""
    process = GatewayProcess(tmp_path_factory.mktemp("pair"), neuron.endpoint, workers=2)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


class Keys:
    """`cortex keys` for one store."""

    def __init__(self, folder: Path) -> None:
        self.store = folder / "keys.db"
        self._config = folder / "keys.yaml"
        self._config.write_text(json.dumps({"access": {"path": str(self.store)}}))

    def __call__(self, *arguments: str, ok: bool = True) -> str:
        result = CliRunner().invoke(app, ["keys", *arguments, "--config", str(self._config)])
        assert (result.exit_code == 0) is ok, result.output
        return result.stdout if ok else result.stderr

    def create(self, *arguments: str) -> str:
        return json.loads(self("create", *arguments, "--json"))["key"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """The keys of `guarded`."""
    return Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def guarded(neuron: NeuronThread, keys: Keys) -> Iterator[GatewayProcess]:
    """A gateway of two processes that serves nobody without a key."""
    process = GatewayProcess(
        keys.store.parent, neuron.endpoint, access={"anonymous": False}, workers=2, log_level="DEBUG"
    )
    try:
        yield process.wait_ready()
    finally:
        process.stop()
