"""A supervisor for tests: starts real worker processes, and talks to them through real rings."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Self

import msgspec

from ipc.broadcast import BroadcastRing
from ipc.control import Control
from ipc.heartbeat import Beat, HeartbeatPage
from ipc.ring import Ring
from ipc.sealed import seal
from ipc.worker_messages import (
    Abort,
    AdapterReport,
    Command,
    DropAdapter,
    Fatal,
    LoadAdapter,
    Loading,
    PoolReport,
    Ready,
    Report,
    ResizePool,
    SamplingParams,
    SimulatedSpec,
    StepReport,
    Stop,
    Submit,
    WorkerSpec,
)
from neuron.processes.worker import ENVIRONMENT
from workers.checkpoints.adapter import AdapterCard
from workers.checkpoints.card import ModelCard

PATIENCE = 120.0  # seconds after which a test gives up, far above what anything here takes


@dataclass
class Answer:
    """What one request got."""

    token_ids: list[int] = field(default_factory=list)
    finish: str = ""
    message: str = ""
    code: str = ""
    reports: int = 0


class Workers:
    """All ranks of one model: `with Workers(simulated=...) as workers`, and none is left behind.

    Args:
        world_size: how many ranks.
        ring_capacity: bytes of each report ring.
        card: of a transformer.
        adapters: of that.
        spec: fields of `WorkerSpec` that differ from the ones below.
    """

    def __init__(
        self,
        *,
        world_size: int = 1,
        ring_capacity: int = 1 << 20,
        card: ModelCard | None = None,
        adapters: Sequence[AdapterCard] = (),
        **spec: Any,
    ) -> None:
        self.world_size = world_size
        self.answers: dict[int, Answer] = {}
        self.steps: list[StepReport] = []
        self.loading: list[Loading] = []
        self.processes: list[subprocess.Popen] = []
        self._resources = ExitStack()
        self.heartbeat = HeartbeatPage.create(world_size)
        self.commands = Ring.create()
        self.reports = [Ring.create(ring_capacity) for _ in range(world_size)]
        self.plans = BroadcastRing.create(world_size - 1) if world_size > 1 else None
        for resource in (self.heartbeat, self.commands, *self.reports, *filter(None, [self.plans])):
            self._resources.callback(resource.close)
        if card is not None:
            spec["card_fd"] = seal("model card", msgspec.msgpack.encode((card, adapters)))
            self._resources.callback(os.close, spec["card_fd"])
        store = self._resources.enter_context(socket.create_server(("127.0.0.1", 0)))
        for rank in range(world_size):
            self.processes.append(self._start(rank, store, spec))

    def _start(self, rank: int, store: socket.socket, changes: dict[str, Any]) -> subprocess.Popen:
        spec = WorkerSpec(
            **{
                "model": "test",
                "engine": "simulated",
                "epoch": 1,
                "device": "cpu",
                "threads": 1,
                "context_length": 4096,
                "max_sequences": 32,
                "max_step_tokens": 2048,
                "kv_pages": 4096,
                "simulated": SimulatedSpec(answer=[11, 12, 13]),
                "log_level": "WARNING",
            }
            | changes,
            rank=rank,
            world_size=self.world_size,
            reports=self.reports[rank].handle,
            commands=self.commands.handle if rank == 0 else None,
            plans=self.plans.handle if self.plans else None,
            heartbeat_fd=self.heartbeat.fd,
            store_fd=store.fileno() if rank == 0 and self.plans else None,
            store_port=store.getsockname()[1],
        )
        control, theirs = Control.pair()
        with control, theirs:
            control.send(spec)
            fd = theirs.fileno()
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "workers"),
                    *("--control-fd", str(fd), "--supervisor-pid", str(os.getpid())),
                ],
                pass_fds=[fd],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                process_group=0,
                env=os.environ | ENVIRONMENT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
            process.stderr.close()
        self._resources.close()

    # --- what a supervisor says -------------------------------------------------------------------------

    def send(self, *commands: Command) -> None:
        for command in commands:
            self.commands.write(msgspec.msgpack.encode(command), PATIENCE)

    def submit(
        self,
        request_id: int,
        prompt: list[int] | int,
        max_tokens: int = 8,
        adapter: int = 0,
        **sampling: Any,
    ) -> None:
        """Start a sequence, greedy unless told; a number stands for a prompt of that many tokens."""
        self.answers[request_id] = Answer()
        ids = array("I", prompt if isinstance(prompt, list) else [5] * prompt).tobytes()
        params = SamplingParams(**{"temperature": 0.0} | sampling)
        self.send(Submit(request_id, ids, max_tokens, params, adapter=adapter))

    def abort(self, request_id: int) -> None:
        self.send(Abort(request_id))

    def adapt(self, order: LoadAdapter | DropAdapter) -> list[AdapterReport]:
        """Have all ranks follow an order, and wait for what each says then."""
        self.send(order)
        return [self._last_of(rank, AdapterReport) for rank in range(self.world_size)]

    def resize(self, kept: int, usable: int) -> list[PoolReport]:
        """Have all ranks change their pools, and wait for what each says then."""
        self.send(ResizePool(kept, usable))
        return [self._last_of(rank, PoolReport) for rank in range(self.world_size)]

    def stop(self) -> None:
        self.send(Stop())

    # --- what it hears ----------------------------------------------------------------------------------

    def ready(self) -> list[Ready]:
        """Wait for every rank."""
        return [self._last_of(rank, Ready) for rank in range(self.world_size)]

    def fatal(self, rank: int = 0) -> Fatal:
        """Wait for the last words of a rank, and for its end."""
        fatal = self._last_of(rank, Fatal)
        self.processes[rank].wait(PATIENCE)
        return fatal

    def _last_of(self, rank: int, kind: type) -> Any:
        for report in self._records(rank):
            if isinstance(report, kind):
                return report
            if isinstance(report, Loading):
                self.loading.append(report)
            elif isinstance(report, StepReport):
                self._take(report)
            else:
                raise AssertionError(f"rank {rank} said {report}, not {kind.__name__}")

    def next_step(self) -> StepReport:
        """The next report of rank 0, already counted into `answers`."""
        report = next(self._records(0))
        assert isinstance(report, StepReport), report
        self._take(report)
        return report

    def collect(self, *request_ids: int) -> list[Answer]:
        """Wait until these requests ended (all, when none is named)."""
        wanted = request_ids or tuple(self.answers)
        while not all(self.answers[request_id].finish for request_id in wanted):
            self.next_step()
        return [self.answers[request_id] for request_id in wanted]

    def generate(self, prompt: list[int] | int, max_tokens: int = 8, **sampling: Any) -> Answer:
        """One request, alone, to its end."""
        request_id = len(self.answers) + 1
        self.submit(request_id, prompt, max_tokens, **sampling)
        return self.collect(request_id)[0]

    def beat(self, rank: int) -> Beat:
        return self.heartbeat.read(rank)

    def wait_for_beat(self, rank: int, state: str, step: int) -> None:
        """Wait until a rank's heartbeat says so."""
        deadline = time.monotonic() + PATIENCE
        while (beat := self.beat(rank)).state != state or beat.step != step:
            assert time.monotonic() < deadline, f"rank {rank} is {beat}, not {state} at {step}"
            time.sleep(0.002)

    def _take(self, report: StepReport) -> None:
        self.steps.append(report)
        for sequence in report.sequences:
            answer = self.answers[sequence.request_id]
            assert not answer.finish, "a report after the end"
            answer.token_ids += sequence.token_ids
            answer.finish = sequence.finish
            answer.message, answer.code = sequence.details.message, sequence.details.code
            answer.reports += 1

    def _records(self, rank: int) -> Iterator[Report]:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            record = self.reports[rank].read(0.2)
            if record is not None:
                yield msgspec.msgpack.decode(record, type=Report)
                deadline = time.monotonic() + PATIENCE
            elif self.processes[rank].poll() is not None and not self.reports[rank].unread:
                stderr = self.processes[rank].stderr.read().decode()
                raise AssertionError(f"rank {rank} ended with {self.processes[rank].returncode}: {stderr}")
        raise AssertionError(f"rank {rank} said nothing for {PATIENCE} s; it is {self.beat(rank)}")
