"""The epochs of a model: one worker group after the other, each from its start until it is gone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from ipc.errors import Code, CortexError
from ipc.messages.state import RankState
from ipc.worker_messages import Ready, StepReport
from neuron.memory.fit import Fit
from neuron.memory.parking import Loan
from neuron.processes.backoff import Backoff
from neuron.processes.group import WorkerGroup
from neuron.tenancy.launcher import Launcher
from neuron.tenancy.renewal import Renewal
from neuron.tenancy.statistics import Statistics

log = logging.getLogger("neuron.tenancy.epochs")

BAD_STARTS = 5  # in a row, until a model counts as failed
STEADY_SECONDS = 60.0  # a group that lived so long was well started
KILLED_LOADS = 3  # tries of one load, where ranks are killed in it: nothing says that the model is at fault


class Epochs:
    """At most one group at a time, and what is known of those before it.

    Args:
        renewal: what the model is served by.
        launcher: makes the groups.
        backoff: waits between restarts.
        on_loading: told the fraction that is read and a message.
        on_steps: told that steps were reported.
        on_death: told why the group that was ready is no more.

    Attributes:
        number: of this epoch; 0 before the first.
        group: of this epoch, while there is one.
        statistics: of this epoch, once it is ready.
        restarts: of the model, after a death.
        load_seconds: that the last load from files took, from the start of its processes.
        wakes: loads from memory, where its weights had been parked.
        wake_seconds: the same of the last of these.
        loaded_on: kind of the device of that load.
    """

    def __init__(
        self,
        renewal: Renewal,
        launcher: Launcher,
        backoff: Backoff,
        *,
        on_loading: Callable[[float, str], None],
        on_steps: Callable[[], None],
        on_death: Callable[[CortexError], None],
    ) -> None:
        self.number = 0
        self.group: WorkerGroup | None = None
        self.statistics: Statistics | None = None
        self.restarts = 0
        self.load_seconds: float | None = None
        self.wake_seconds: float | None = None
        self.wakes = 0
        self.loaded_on = ""
        self._renewal = renewal
        self._launcher = launcher
        self._backoff = backoff
        self._on_loading = on_loading
        self._on_steps = on_steps
        self._on_death = on_death
        self._bad_starts = 0
        self._ready_at = 0.0
        self._proven = 0  # the last epoch that finished a request

    async def start(self, fit: Fit) -> list[Ready]:
        """Start an epoch and wait until it is ready; nothing of it stays when it does not get there.

        Raises:
            CortexError: why not.
        """
        ready = await self._start(fit, KILLED_LOADS)
        self._bad_starts = 0
        return ready

    async def start_again(self, fit: Fit, error: CortexError, tell: Callable[[str], None]) -> list[Ready]:
        """After a death: wait, start, and wait longer each time that it dies young.

        Args:
            error: why it died.
            tell: hears what is waited for.

        Raises:
            CortexError: it died young so often that it is given up.
        """
        while True:
            await self.group.wait_gone()
            if self._bad_starts >= BAD_STARTS:
                self._bad_starts = 0
                raise CortexError(error.code, f"{error.message}; given up after {BAD_STARTS} bad starts")
            seconds = self.seconds_to_wait
            tell(f"restarting in {seconds:g} seconds: {error.message}")
            await asyncio.sleep(seconds)
            try:
                return await self._start(fit, 1)
            except CortexError as failure:
                error = failure
                self._bad_starts += 1

    def ranks(self) -> list[RankState]:
        """The processes of the group, from their heartbeat page."""
        return self.group.ranks() if self.group is not None else []

    @property
    def seconds_to_wait(self) -> float:
        """Before the next start, after as many bad ones as there were in a row."""
        return self._backoff.seconds(self._bad_starts)

    def count_failure(self) -> None:
        """A load came to nothing."""
        self._bad_starts += 1

    def prove(self) -> None:
        """This epoch finished a request, so it was well started."""
        self._proven = self.number

    def count_death(self) -> None:
        """The group died. What it had cached and counted is gone with it."""
        self.restarts += 1
        self.statistics = None
        steady = time.monotonic() - self._ready_at >= STEADY_SECONDS or self._proven == self.number
        self._bad_starts = 0 if steady else self._bad_starts + 1

    async def stop(self) -> None:
        """End the group, if there is one.

        Raises:
            CortexError: its processes did not end.
        """
        if self.group is not None:
            await self.group.stop()

    def forget(self) -> None:
        """Nothing of it is left."""
        self.group = self.statistics = None

    async def _start(self, fit: Fit, tries: int) -> list[Ready]:
        """One epoch, or several where a rank is killed before they are ready."""
        description = self._renewal.description
        if fit.context_length < description.context_length:
            log.warning(
                "context clamped to the memory there is model=%s context_length=%d wanted=%d",
                description.id,
                fit.context_length,
                description.context_length,
            )
        while True:
            self.number += 1
            began = time.monotonic()
            loan = self._launcher.lend(self._renewal.settings, description, fit)
            group = self.group = self._group(fit, loan)
            try:
                group.start()
                ready = await group.ready(self._launcher.config.load_deadline_seconds)
                break
            except BaseException as error:
                self._settle(loan, error)
                await group.stop()
                tries -= group.was_killed
                again = group.died_waiting or (group.was_killed and tries > 0)
                if not again or not isinstance(error, CortexError):
                    raise
                log.warning("load begins again model=%s reason=%s", description.id, error)
        self._ready_at = time.monotonic()
        seconds, woken = self._ready_at - began, all(report.woken for report in ready)
        share = None
        if woken:
            self.wakes += 1
            self.wake_seconds = seconds
            share = seconds / self.load_seconds if self.load_seconds else None
        else:
            self.load_seconds = seconds
        if loan is not None:
            self._launcher.parking.settle(loan, loaded=True, woken=woken, share=share)
        self.loaded_on = fit.devices[0].partition(":")[0]
        self.statistics = Statistics(ready)
        log.info(
            "model %s model=%s seconds=%.2f weights_seconds=%.2f bytes=%d",
            "woken" if woken else "loaded",
            description.id,
            seconds,
            max(report.load_seconds for report in ready),
            description.bytes_weights,
        )
        return ready

    def _settle(self, loan: Loan | None, error: BaseException) -> None:
        """A load has failed. Its weights stay parked where they are not what was wrong with it."""
        if loan is None:
            return
        at_fault = isinstance(error, CortexError) and error.code != Code.INSUFFICIENT_MEMORY
        broken = at_fault and not self.group.was_killed
        self._launcher.parking.settle(loan, loaded=False, woken=not broken)

    def _group(self, fit: Fit, loan: Loan | None) -> WorkerGroup:
        return self._launcher.group(
            self._renewal.settings,
            self._renewal.description,
            fit,
            self.number,
            on_loading=self._on_loading,
            on_steps=self._take,
            on_death=self._on_death,
            parking_fds=loan.fds if loan is not None else (),
        )

    def _take(self, steps: Sequence[StepReport]) -> None:
        self.statistics.take(steps)
        self._on_steps()
