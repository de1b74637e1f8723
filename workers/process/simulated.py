"""An engine with no model: a speed, a size, a fixed answer and a failure plan, and every other part real."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ipc.errors import Code, CortexError
from ipc.heartbeat import HeartbeatPage
from ipc.worker_messages import (
    PAGE_SIZE,
    AdapterReport,
    DropAdapter,
    FailurePlan,
    LoadAdapter,
    MemoryUse,
    WorkerSpec,
)
from workers.checkpoints.caches import first_page_seen
from workers.step.engine import Loaded, OutOfDeviceMemory, StepResult
from workers.step.gallery import Gallery
from workers.step.plan import HOLE, Scheduled, StepPlan

BACK_TO_BACK = 0.005  # seconds; a step that follows the last one within this time follows it at once
COLLECTIVE_POLL = 50e-6  # seconds between looks at the other ranks
COLLECTIVE_TIMEOUT = 1800.0  # seconds, as in torch.distributed


@dataclass(slots=True)
class SimulatedSlot:
    """A sequence, told by its lengths: no token of a prompt matters here."""

    prompt_len: int
    length: int  # tokens of prompt and output
    num_computed: int = 0
    tables: list[list[int]] = field(default_factory=list)  # of each cache group, where the spec names groups


class SimulatedEngine:
    """Answers every prompt with `answer`, over and over: output token n is `answer[n % len(answer)]`.

    The ranks of a group meet in each step as they would in a real all-reduce: through their heartbeats, where
    a rank that died or hangs is never seen to arrive, so that the others wait for it.
    """

    def __init__(self, spec: WorkerSpec, heartbeat: HeartbeatPage) -> None:
        if spec.simulated is None or not spec.simulated.answer:
            raise CortexError(
                Code.MODEL_LOAD_FAILED, "a simulated engine needs an answer of at least one token"
            )
        self.spec = spec
        self.simulated = spec.simulated
        self.answer = spec.simulated.answer
        self.failure = due_failure(spec)
        self.heartbeat = heartbeat
        self.slots = [SimulatedSlot(0, 0) for _ in range(spec.max_sequences)]
        self.untold = 0  # tokens of other ranks' sequences, that no plan has told yet
        self.met = 0  # collectives
        self.met_seconds = 0.0
        self.free_at = 0.0  # monotonic second at which the simulated device ended its last step

    def load(self, progress: Callable[[float, str], None]) -> Loaded:
        """Take `load_seconds`. Raises what the failure plan says, at the end, as a bad file would."""
        seconds = self.simulated.load_seconds
        started = time.monotonic()
        while (elapsed := time.monotonic() - started) < seconds:
            progress(elapsed / seconds, "simulating a load")
            time.sleep(min(0.1, seconds - elapsed))
        if self.failure.fail_load is not None:
            raise CortexError(Code.MODEL_LOAD_FAILED, self.failure.fail_load)
        if self.failure.out_of_memory_in_load:
            raise CortexError(Code.INSUFFICIENT_MEMORY, "simulated lack of memory in the load")
        progress(1.0, "simulated load done")
        memory = MemoryUse(weights=self.simulated.memory_bytes)
        return Loaded(
            self.spec.kv_pages, memory, self.simulated.caches, self.simulated.states, gallery=Gallery()
        )

    def prove(self) -> int:
        return self._meet(step=0)

    def execute(self, plan: StepPlan) -> StepResult:
        follows, caches = self.spec.rank > 0, self.simulated.caches
        if follows and len(plan.tokens) != self.untold:
            raise RuntimeError(f"step {plan.step} tells {len(plan.tokens)} tokens of {self.untold}")
        for new in plan.added:
            tables = [list(table) for table in new.tables or [[] for _ in caches]]
            computed = PAGE_SIZE * len(tables[0]) if tables else 0
            self.slots[new.slot] = SimulatedSlot(new.prompt_len, len(new.token_ids) // 4, computed, tables)
        self._fail(plan.step)
        sampled = []
        prefill_tokens = decode_tokens = 0
        for entry in plan.scheduled:
            slot = self.slots[entry.slot]
            if caches:
                self._look_up(slot, entry)
            slot.num_computed += entry.num_tokens
            if entry.num_tokens == 1:
                decode_tokens += 1
            else:
                prefill_tokens += entry.num_tokens
            if slot.num_computed == slot.length:
                sampled.append(self.answer[(slot.length - slot.prompt_len) % len(self.answer)])
                slot.length += 1
        self._take_time(prefill_tokens, decode_tokens)
        if self.spec.world_size > 1:
            self._meet(plan.step)
        self.untold = len(sampled)
        return StepResult([] if follows else sampled, seen=plan.look is not None)

    def adapt(self, order: LoadAdapter | DropAdapter, tell: Callable[[AdapterReport], None]) -> None:
        """Adapters are there at once, take no memory, and change no answer."""
        tell(AdapterReport(order.number))

    def collectives(self) -> tuple[int, float]:
        return self.met, self.met_seconds

    def close(self) -> None:
        pass

    def _look_up(self, slot: SimulatedSlot, entry: Scheduled) -> None:
        """Find each page that layers would read or write.

        Raises:
            RuntimeError: the plan has none there.
        """
        for table, pages in zip(slot.tables, entry.new_pages, strict=False):
            table.extend(pages)
        start, end = slot.num_computed, slot.num_computed + entry.num_tokens
        for group, table in zip(self.simulated.caches, slot.tables, strict=True):
            first, last = first_page_seen(group, start), (end - 1) // PAGE_SIZE
            needed = range(first, last + 1)
            if group.kind == "state":  # the one before, and the one after
                needed = {first, last} if start else {last}
            if len(table) <= last or any(table[number] == HOLE for number in needed):
                raise RuntimeError(f"tokens {start} to {end} do not find their pages of a {group.kind} group")

    def _take_time(self, prefill_tokens: int, decode_tokens: int) -> None:
        """Sleep until the device would be done.

        Steps that follow each other are timed from end to end, so that neither scheduling nor the lateness
        of a sleep adds to the time of a step.
        """
        seconds = self.simulated.step_seconds if decode_tokens else 0.0
        if self.simulated.prefill_tokens_per_second:
            seconds += prefill_tokens / self.simulated.prefill_tokens_per_second
        if not seconds:
            return
        now = time.monotonic()
        self.free_at = (self.free_at if now - self.free_at < BACK_TO_BACK else now) + seconds
        time.sleep(max(0.0, self.free_at - now))

    def _fail(self, step: int) -> None:
        if step == self.failure.die_at_step:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == self.failure.error_at_step:
            raise RuntimeError(f"simulated failure in step {step}")
        if step == self.failure.out_of_memory_at_step:
            error = OutOfDeviceMemory if self.spec.world_size == 1 else RuntimeError  # as the real one
            raise error(f"simulated lack of memory in step {step}")
        while step == self.failure.hang_at_step:
            time.sleep(1.0)

    def _meet(self, step: int) -> int:
        """The collective: arrive, and wait until every rank has arrived. Returns how many there are."""
        self.heartbeat.beat(self.spec.rank, state="collective", step=step)
        began = time.monotonic()
        deadline = began + COLLECTIVE_TIMEOUT
        for rank in range(self.spec.world_size):
            while not self._arrived(rank, step):
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"rank {rank} did not come to step {step} in {COLLECTIVE_TIMEOUT:.0f} s"
                    )
                time.sleep(COLLECTIVE_POLL)
        self.met += 1
        self.met_seconds += time.monotonic() - began
        return self.spec.world_size

    def _arrived(self, rank: int, step: int) -> bool:
        beat = self.heartbeat.read(rank)
        return beat.step > step or (beat.step == step and beat.state in ("collective", "ready", "stopping"))


def due_failure(spec: WorkerSpec) -> FailurePlan:
    """What this rank does wrong in this epoch (they count from 1); an empty plan when it is not its turn."""
    failure = spec.simulated.failure if spec.simulated else None
    if failure is None or failure.rank != spec.rank:
        return FailurePlan()
    if failure.epochs is not None and spec.epoch > failure.epochs:
        return FailurePlan()
    return failure
