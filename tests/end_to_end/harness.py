"""The whole system as people start it, for tests: `cortex up`, or the two daemons with their files."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from gateway.commands import remote, status
from ipc.blocking_client import BlockingClient
from ipc.messages.requests import Health
from ipc.messages.state import ModelState
from tests.ports import free_port

SCRIPTS = Path(sysconfig.get_path("scripts"))
PATIENCE = 150.0  # seconds that any single wait of a test may take, on a busy machine
LONG = 30_000  # tokens: seconds of work for the simulated engine at full speed


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE:g} s for {what}"
        time.sleep(0.02)
    return value


class Program:
    """One of our commands, running, with what it says.

    Args:
        command: a script of this package, and its arguments.
        folder: where it finds its TMPDIR (`tmp`) and keeps its log.
    """

    def __init__(self, *command: str | Path, folder: Path, cwd: Path | None = None) -> None:
        self.tmp = folder / "tmp"
        self.tmp.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{command[0]}.log"
        self.lines: list[str] = []
        own = {"TMPDIR": str(self.tmp), "XDG_STATE_HOME": str(self.tmp), "OMP_NUM_THREADS": "1"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [SCRIPTS / command[0], *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | own,
                cwd=cwd or folder,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with self.process.stdout as said:
            self.lines.extend(line.rstrip("\n") for line in said)

    def said(self, pattern: str) -> re.Match[str] | None:
        return next((match for line in list(self.lines) if (match := re.search(pattern, line))), None)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until it says something; fail when it ends before that."""

        def seen() -> re.Match[str] | None:
            ended = self.process.poll() is not None and not self._reader.is_alive()
            match = self.said(pattern)
            assert match or not ended, f"it ended without saying {pattern!r}: {self.everything()}"
            return match

        return wait_until(seen, f"{pattern!r} in {self.lines}")

    def everything(self) -> str:
        """What it wrote to both streams."""
        return "\n".join(self.lines) + "\n" + self.log.read_text()

    def family(self, module: str = "") -> list[psutil.Process]:
        """Its descendants, or those of them that run `python -m MODULE`; oldest first."""
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [each for each in family if not module or module in _command(each)[1:3]]

    def kin(self) -> list[psutil.Process]:
        """All processes that began with its TMPDIR or one below it, whoever their parent is by now."""
        return [each for each in psutil.process_iter() if _variable(each, "TMPDIR").startswith(str(self.tmp))]

    def end(self, number: int = signal.SIGINT) -> int:
        """Signal it and wait; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        family = self.family()
        try:
            self.end()
        finally:
            for process in family:
                if process.is_running():
                    process.kill()


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _variable(process: psutil.Process, name: str) -> str:
    try:
        return process.environ().get(name, "")
    except psutil.Error:  # it ended, or is another user's
        return ""


def is_ready(base: str) -> bool:
    """Whether the gateway at `base` says so."""
    try:
        return httpx.get(f"{base}/ready", timeout=PATIENCE).status_code == 200
    except httpx.TransportError:
        return False


def invites_a_retry(response: httpx.Response) -> bool:
    """Whether it is a typed error that says when to try again; else the test fails."""
    assert response.status_code == 503, response.text
    assert response.json()["error"]["code"], response.text
    assert int(response.headers["Retry-After"]) > 0
    return True


class Client:
    """Requests to a gateway at `base`, and what it says of itself."""

    base: str

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.base}{path}", json=body, timeout=PATIENCE)

    def chat(self, content: str = "Hello!", **body: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 8} | body
        return self.post("/v1/chat/completions", **body)

    def stream(self, max_tokens: int = LONG, model: str = "simulated", **body: Any) -> Stream:
        """A streamed chat that has begun."""
        return Stream(self.base, model, max_tokens, **body)

    def fleet(self) -> status.FleetHealth:
        return status.read(remote.fetch(self.base), self.base)

    def model(self, model: str = "simulated") -> ModelState | None:
        """What the gateway knows of a model now, on the first neuron."""
        return next((state for state in self.fleet().neurons[0].models if state.id == model), None)

    def workers(self, model: str) -> list[int]:
        """Process ids of the ranks of a model on the first neuron, rank 0 first."""
        with BlockingClient(self.fleet().neurons[0].endpoint, silence=PATIENCE) as client:
            return [rank.pid for rank in client.ask(Health(id=0), PATIENCE).ranks[model]]

    def quiet(self, model: str = "simulated") -> ModelState:
        """Wait until nothing of that model runs or waits."""

        def idle() -> ModelState | None:
            state = self.model(model)
            return state if state and state.status == "ready" and not state.running + state.waiting else None

        return wait_until(idle, f"{model} to be idle")

    def serves_again(self, model: str = "simulated") -> None:
        """Ask until an answer comes; until then each refusal must be a typed error that invites a retry."""

        def answered() -> bool:
            try:
                response = self.chat(model=model)
            except httpx.TransportError:  # the gateway itself is away
                return False
            return response.status_code == 200 or not invites_a_retry(response)

        wait_until(answered, f"{model} to be served again")


class Cortex(Program, Client):
    """`cortex up` on free ports."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__("cortex", "up", "--listen", "127.0.0.1:0", *options, folder=folder)

    def __enter__(self) -> Self:
        try:
            self.is_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def is_up(self) -> None:
        """Wait until it says how to use it."""
        self.base = self.wait_for(r"cortex is up at (http://\S+)/v1")[1]
        self.metrics = self.wait_for(r"metrics at (http://\S+/metrics)")[1]
        self.wait_for("Ctrl-C")


class Services(Client):
    """`neuron serve` and `cortex serve` with configuration files, as systemd starts them.

    Args:
        neuron: further keys of the neuron's configuration.
        gateway: further keys of the gateway's own settings.
        public_key: the neuron's, where it has one.
        images: the gateway's settings for those behind addresses.
    """

    def __init__(
        self,
        folder: Path,
        neuron: dict[str, Any],
        gateway: dict[str, Any],
        public_key: str | None = None,
        images: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        port, metrics = free_port(), free_port()
        self.base, self.metrics = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{metrics}/metrics"
        listen = {"listen": f"127.0.0.1:{port}", "metrics_listen": f"127.0.0.1:{metrics}"}
        entry = {"name": "beast", "endpoint": self.endpoint, "public_key": public_key}
        store = {"path": str(folder / "responses.db")}
        self._write("neuron", {"name": "beast", "listen": self.endpoint, "standby": False} | neuron)
        cortex = {"gateway": listen | gateway, "store": store, "images": images or {}, "neurons": [entry]}
        self._write("cortex", cortex)
        self.neuron = self.start_neuron()
        self.gateway = Program("cortex", "serve", "--config", folder / "cortex.yaml", folder=folder)

    def start_neuron(self) -> Program:
        return Program("neuron", "serve", "--config", self.folder / "neuron.yaml", folder=self.folder)

    def _write(self, name: str, settings: dict[str, Any]) -> None:
        (self.folder / f"{name}.yaml").write_text(json.dumps(settings))

    def ready(self) -> bool:
        return is_ready(self.base)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for program in (self.gateway, self.neuron):
            program.__exit__()


class Stream:
    """A streamed chat: how it went so far. It is read in a thread."""

    def __init__(self, base: str, model: str, max_tokens: int, **body: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.errors: list[dict[str, Any]] = []  # typed ones: at most one, which ends it
        self.broken = False  # the connection broke
        self.complete = False  # [DONE] came
        self._leave = threading.Event()
        body = {
            "model": model,
            "messages": [{"role": "user", "content": "Hello!"}],
            "max_tokens": max_tokens,
            "stream": True,
        } | body
        self._thread = threading.Thread(
            target=self._read, args=(f"{base}/v1/chat/completions", body), daemon=True
        )
        self._thread.start()
        wait_until(lambda: len(self.events) > 2 or not self._thread.is_alive(), "a stream to begin")

    def _read(self, url: str, body: dict[str, Any]) -> None:
        try:
            with httpx.stream("POST", url, json=body, timeout=PATIENCE) as response:
                for data in self._data(response):
                    if data == "[DONE]":
                        self.complete = True
                    elif "error" in (event := json.loads(data)):
                        self.errors.append(event["error"])
                    else:
                        self.events.append(event)
        except httpx.TransportError:
            self.broken = True

    def _data(self, response: httpx.Response) -> Iterator[str]:
        for line in response.iter_lines():
            if self._leave.is_set():
                return
            if line.startswith("data: "):
                yield line.removeprefix("data: ")
            elif line.startswith("{"):  # refused before it began
                yield line

    def leave(self) -> None:
        """Go away in the middle of it."""
        self._leave.set()
        self.join()

    def join(self) -> Stream:
        """Wait for its end."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the stream does not end"
        return self
