"""A neuron as a real process, for tests: its own port, simulated and demo models, and clients for it.

    with Neuron(tmp_path, models=[simulated("sim")]) as neuron, neuron.client() as client:
        client.ask(Load(id=0, model="sim"), PATIENCE)

It is the daemon with short waits between restarts, as a fork of a process that has imported it (`forked.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from ipc.blocking_client import BlockingClient
from ipc.messages.conversation import Message
from ipc.messages.replies import HealthReply
from ipc.messages.requests import Generate, Health
from ipc.messages.sampling import Sampling
from ipc.messages.state import ModelState
from tests.neuron.forked import Forked

PATIENCE = 150.0  # seconds that any single wait of a test may take
HURRY = "CORTEX_HURRY"  # of the environment: times as fast as usual a neuron forgets (`hurry`)
HELD = "CORTEX_HELD"  # of the environment: a file for what turns of its loop take (`tests.held`)
ROOT = Path(__file__).parents[2]


def simulated(model_id: str, **plan: Any) -> dict[str, Any]:
    """The configuration of a simulated model: keys of `Simulated`, and `settings` for those of the model."""
    settings = plan.pop("settings", {})
    return {"id": model_id, "simulated": plan, **settings}


def chat(model: str, max_tokens: int | None = 8, *, stream: bool = True, **changes: Any) -> Generate:
    """A small request."""
    sampling = Sampling(max_tokens=max_tokens, **changes.pop("sampling", {}))
    messages = [Message(role="user", content="Hello, who are you?")]
    values = {"messages": messages, "sampling": sampling, "stream": stream, **changes}
    return Generate(id=0, model=model, **values)


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`, which is asked every few milliseconds."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE:g} seconds for {what}")
        time.sleep(0.01)
    return value


async def until(condition: Callable[[], Any], what: str = "") -> Any:
    """The same where an event loop runs."""
    for _ in range(int(PATIENCE / 0.01)):
        if value := condition():
            return value
        await asyncio.sleep(0.01)
    raise TimeoutError(f"waited {PATIENCE:g} seconds for {what or 'what a test wants'}")


class Neuron:
    """A running neuron; a context manager that ends it.

    Args:
        folder: where its configuration and its log go.
        models: as in the configuration file.
        config: further keys of the configuration file.
    """

    def __init__(self, folder: Path, models: list[dict[str, Any]] | None = None, **config: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "neuron.log"
        self.config_file = folder / "neuron.yaml"
        self._keys = {
            "name": "tested",
            "listen": "tcp://127.0.0.1:*",
            "hf_cache": str(folder / "no-cache"),
            "devices": ["cpu"],
            "standby": False,  # most tests count processes, and simulated models have no use for one
        } | config
        self.configure(models or [])
        self.endpoint = ""

    def configure(self, models: list[dict[str, Any]], **config: Any) -> None:
        """Write its configuration file, with further keys; a running neuron reads it within seconds."""
        self.config_file.write_text(json.dumps(self._keys | {"models": models} | config))

    @property
    def cache(self) -> str:
        """Where it looks for what came from a hub."""
        return self._keys["hf_cache"]

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self.process = Forked(self.config_file, log.fileno())
        try:
            found = wait_until(self._listens, "the neuron to listen")
            self.endpoint = found[1]
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def _listens(self) -> re.Match[str] | None:
        if self.process.poll() is not None:
            raise RuntimeError(f"the neuron ended with {self.process.returncode}: {self.log}")
        return re.search(r"neuron listens .*endpoint=(\S+)", self.log)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            print(f"The neuron ({self.process.poll() or 'runs'}) wrote:\n{self.log}", file=sys.stderr)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    @property
    def log(self) -> str:
        """All that it wrote, its workers' lines included."""
        return self._log.read_text(errors="replace")

    def client(self) -> BlockingClient:
        """A new connection; close it, or use it in a `with`."""
        return BlockingClient(self.endpoint, silence=PATIENCE)

    def health(self) -> HealthReply:
        """What it says of itself now."""
        with self.client() as client:
            return client.ask(Health(id=0), PATIENCE)

    def model(self, model_id: str) -> ModelState:
        """What it says of one model now; just after its start it has yet to find its models."""
        return self.wait_for(model_id)

    def wait_for(self, model_id: str, **facts: Any) -> ModelState:
        """The state of a model, once each of `facts` is true of it, e.g. status="ready"."""
        with self.client() as client:  # one for all questions: each connection costs both sides milliseconds

            def right() -> ModelState | None:
                states = client.ask(Health(id=0), PATIENCE).models
                of_it = [state for state in states if state.id == model_id]
                return next((s for s in of_it if all(getattr(s, k) == v for k, v in facts.items())), None)

            return wait_until(right, f"{model_id} to have {facts}")

    def workers(self, model_id: str) -> list[int]:
        """Process ids of the ranks of a model, rank 0 first."""
        return [rank.pid for rank in self.health().ranks.get(model_id, [])]

    def children(self) -> list[int]:
        """Process ids of everything that it started, dead and not reaped included."""
        return children_of(self.process.pid)

    def descriptors(self) -> int:
        """How many it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def memory(self) -> int:
        """Bytes resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024


def children_of(pid: int) -> list[int]:
    """Process ids of the children of `pid`, zombies included."""
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # this thread ended in this moment
            found += map(int, file.read_text().split())
    return found


def is_running(pid: int) -> bool:
    """Whether such a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def measure_once(folder: Path) -> None:
    """Have the first neuron find out what a process takes, for which each would start one."""
    from neuron.processes.standby import Standby

    plain, known = Standby.measure, folder / "process"

    async def measure(standby: Standby, device: str) -> int | None:
        if known.exists():
            return int(known.read_text())
        size = await plain(standby, device)
        if size is not None:
            new = folder / f"process.{os.getpid()}"
            new.write_text(str(size))
            new.rename(known)
        return size

    Standby.measure = measure


def hurry(times: float) -> None:
    """Have this neuron forget so many times as fast how its models were used, for a benchmark that does not
    take as long as what it simulates."""
    from neuron.memory import eviction, room

    for name in ("HALF_LIFE", "VISIT_SECONDS", "VISIT_HALF_LIFE"):
        setattr(eviction, name, getattr(eviction, name) / times)
    eviction.MISSED_VISITS *= times
    room.LOOK_SECONDS /= times


def watch_loop(file: Path) -> None:
    """Have this neuron measure what its loop takes of CPU time in one go, for a benchmark."""
    from neuron import daemon
    from tests.held import Held

    plain, held = daemon.serve, Held(file)

    async def serve(*args: Any) -> None:
        held.watch(asyncio.get_running_loop())
        await plain(*args)

    daemon.serve = serve


def serve(config_file: str) -> int:
    """Be a neuron with short waits between restarts; its exit code."""
    from neuron.config import load
    from neuron.daemon import run
    from neuron.processes.backoff import Backoff

    config = load(config_file)
    if not config.standby and "CORTEX_TESTS" in os.environ:
        measure_once(Path(os.environ["CORTEX_TESTS"]))
    if HURRY in os.environ:
        hurry(float(os.environ[HURRY]))
    if HELD in os.environ:
        watch_loop(Path(os.environ[HELD]))
    return run(config, config_file, Backoff(first=0.01, longest=0.05))
