"""Text processes for one kind of work, which accounts use in turn."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from itertools import chain

from ipc.errors import Code, CortexError
from neuron.preparation.jobs import Job
from neuron.preparation.process import ProcessDied, TextProcess

log = logging.getLogger("neuron.preparation.pool")

OURS = "\0"  # the neuron's own account: a load waits behind nobody's requests
TRIES = 2  # of a job whose process was killed: by the kernel for memory, perhaps another's, or by a person
JOB_SECONDS = 120.0  # for one job: a template stops by itself long before
IDLE_SECONDS = 600.0
KILL_SECONDS = 10.0  # from SIGKILL to giving up on a process that the kernel holds
IDLE_MEMORY = 1 << 30  # bytes that those which wait for a job hold together; the longest idle make way
MAX_WAITING = 512  # requests that wait for a turn, of which one account may have half


class ProcessPool:
    """Has work done by processes of its own. No account ever has all of several, and those who wait take
    turns: one dear request slows its own account, and nobody else's.

    A process is started when there is work for it and none that waits. One that dies, or takes too long,
    costs the request that it worked on.

    Args:
        start: makes a process.
        size: processes. Of more than one, no account has all.
        seconds: that a job may take.
        most: requests that may wait for a turn.
        idle_memory: bytes that waiting processes may hold together.
        idle_seconds: that a process waits for the next job, before its memory is given back.
    """

    def __init__(
        self,
        start: Callable[[], TextProcess],
        size: int,
        seconds: float = JOB_SECONDS,
        *,
        most: int = MAX_WAITING,
        idle_memory: int = IDLE_MEMORY,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._start = start
        self._size = size
        self._each = max(1, size - 1)  # that an account may have at once
        self._seconds = seconds
        self._most = most
        self._idle_memory = idle_memory
        self._idle_seconds = idle_seconds
        self._busy: set[TextProcess] = set()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # by account, in turn
        self._running: Counter[str] = Counter()
        self._idle: list[tuple[TextProcess, asyncio.TimerHandle]] = []  # the one that worked last is last
        self._tasks: set[asyncio.Task] = set()

    async def run(self, account: str, job: Job, body: bytes | memoryview) -> bytes:
        """The result of `job`, once `account` has had its turn. Cancelled before that, it is never begun.

        Raises:
            CortexError: what the job ended with instead; QUEUE_FULL where it could not even wait.
        """
        self._check_room(account)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(account, deque()).append(turn)
        self._next()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it had its turn in this moment
                self._done(account)
            else:
                self._withdraw(account, turn)
            raise
        # Work counts until it is done, whether anybody still waits for it or not.
        return await asyncio.shield(self._keep(self._work(account, job, body)))

    @property
    def is_busy(self) -> bool:
        """Whether there is work under way, or waiting."""
        return bool(self._tasks or self._waiting)

    @property
    def memory(self) -> int:
        """Bytes that its processes hold now."""
        return sum(process.memory for process in (*self._busy, *(process for process, _ in self._idle)))

    @property
    def spare_memory(self) -> int:
        """Bytes of those that wait for a job."""
        return sum(process.memory for process, _ in self._idle)

    async def end_idle(self, size: int) -> int:
        """End idle ones, the longest idle first, until `size` bytes come free; how many do."""
        freed, ending = 0, []
        while self._idle and freed < size:
            process = self._idle[0][0]
            freed += process.memory
            ending.append(self._dismiss(process))
        if ending:
            await asyncio.wait(ending, timeout=KILL_SECONDS)
        return freed

    async def close(self) -> None:
        """End all processes, what they work on, and what waits for them."""
        for turn in chain.from_iterable(self._waiting.values()):
            turn.cancel()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        idle, self._idle = self._idle, []
        for process, timer in idle:
            timer.cancel()
            process.on_gone = None
            await process.end()

    # --- processes ----------------------------------------------------------------------------------------

    def _keep(self, coroutine) -> asyncio.Task:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waited for it has it; nobody has to

    async def _work(self, account: str, job: Job, body: bytes | memoryview) -> bytes:
        process, tries = None, TRIES
        try:
            async with asyncio.timeout(self._seconds):
                while True:
                    process = self._take()
                    self._busy.add(process)
                    try:
                        outcome, result = await process.ask(job, body)
                        break
                    except ProcessDied as error:
                        log.error(
                            "a text process died pid=%d verb=%s reason=%s", process.pid, job.verb, error
                        )
                        tries -= 1
                        if not (error.killed and tries):
                            raise
                        self._busy.discard(process)
                        await process.end()
        except TimeoutError as error:
            raise job.too_much(f"{self._seconds:g} seconds") from error
        except ProcessDied as error:
            did = "read it" if job.is_of_load else "prepared the request"
            after = "ask for the model again" if job.is_of_load else "other requests go on"
            raise CortexError(Code.INTERNAL, f"the process that {did} {error}; {after}") from error
        except OSError as error:
            does = "read it" if job.is_of_load else "prepare the request"
            message = f"no process could be started to {does}: {error}; the host may be short of memory"
            raise CortexError(Code.INTERNAL, message) from error
        else:
            if not outcome.leaves:
                self._busy.discard(process)
                self._give_back(process)
                process = None
            if outcome.error is not None:
                raise outcome.error.error()
            return result
        finally:
            if process is not None:
                self._busy.discard(process)
                await process.end()
            self._done(account)

    def _take(self) -> TextProcess:
        """One that waits, or a new one."""
        while self._idle:
            process, timer = self._idle.pop()
            timer.cancel()
            process.on_gone = None
            if process.is_there:
                return process
            self._died_idle(process)
        return self._start()

    def _died_idle(self, process: TextProcess) -> None:
        log.warning("a text process died while it had nothing to do pid=%d", process.pid)
        self._dismiss(process)

    def _give_back(self, process: TextProcess) -> None:
        timer = asyncio.get_running_loop().call_later(self._idle_seconds, self._dismiss, process)
        self._idle.append((process, timer))
        process.on_gone = self._died_idle
        while len(self._idle) > 1 and sum(each.memory for each, _ in self._idle) > self._idle_memory:
            self._dismiss(self._idle[0][0])

    def _dismiss(self, process: TextProcess) -> asyncio.Task[int]:
        """End one that waits; the task is done when it is gone."""
        process.on_gone = None
        for idle, timer in self._idle:
            if idle is process:
                timer.cancel()
        self._idle = [each for each in self._idle if each[0] is not process]
        return self._keep(process.end())

    # --- turns --------------------------------------------------------------------------------------------

    def _check_room(self, account: str) -> None:
        """QUEUE_FULL where no more may wait. Nobody's requests keep a load of the neuron's own out."""
        own, waiting = len(self._waiting.get(account, ())), sum(map(len, self._waiting.values()))
        if account != OURS and (waiting >= self._most or own >= self._most // 2):
            raise CortexError(
                Code.QUEUE_FULL,
                f"{waiting} requests already wait to be prepared, {own} of this account: that is the limit",
                details={"waiting": waiting, "limit": self._most},
            )

    def _withdraw(self, account: str, turn: asyncio.Future[None]) -> None:
        """Nobody waits for `turn` any more."""
        if turn in (turns := self._waiting.get(account, ())):
            turns.remove(turn)
            if not turns:
                del self._waiting[account]

    def _done(self, account: str) -> None:
        self._running[account] -= 1
        if not self._running[account]:
            del self._running[account]
        self._next()

    def _next(self) -> None:
        """Begin what may begin: one of each account, and again from the first."""
        begun = True
        while begun:
            begun = False
            for account in list(self._waiting):
                if self._running.total() >= self._size:
                    return
                begun |= self._begin_one(account)

    def _begin_one(self, account: str) -> bool:
        """Give `account` a turn, if it may have one."""
        turns = self._waiting[account]
        while turns and turns[0].done():  # nobody waits for it any more
            turns.popleft()
        if not turns:
            del self._waiting[account]
            return False
        if self._running[account] >= self._each:
            return False
        self._running[account] += 1
        turns.popleft().set_result(None)
        self._waiting.move_to_end(account)
        return True
