"""What a model has while it is loaded: booked memory, its worker groups, their pool and adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from math import inf

from ipc.errors import CortexError
from ipc.worker_messages import Ready
from neuron.admission.request_queue import RequestQueue
from neuron.memory.fit import Fit
from neuron.memory.room import Room
from neuron.memory.wish import Place, Tenant
from neuron.processes.backoff import Backoff
from neuron.tenancy.adapters import Adapters
from neuron.tenancy.epochs import Epochs
from neuron.tenancy.launcher import Launcher
from neuron.tenancy.pool import Pool
from neuron.tenancy.prefixes import Prefixes
from neuron.tenancy.renewal import Renewal
from neuron.tenancy.statistics import Statistics

SPARE_SHARE = 1 / 8  # of what was booked, that is asked for on top where a device had less than that
SPARE_BYTES = 256 << 20  # and at least so much of it, on each rank
SHORTAGE_SECONDS = 60.0  # after a load that was short of memory, until the devices may well have it


class Tenancy:
    """Of one model: from a booking to its end, again and again.

    Args:
        renewal: what the model is served by.
        room: gives it memory.
        launcher: makes its worker groups.
        backoff: waits between restarts.
        requests: of the model.
        on_loading: told the fraction that is read and a message.
        on_steps: told that steps were reported.
        on_death: told why the group that was ready is no more.
        changed: called when there is something else to tell of it.

    Attributes:
        fit: what is booked, and where; None: nothing is.
        epochs: its worker groups.
        adapters: that they have.
        pool: of their pages.
    """

    def __init__(
        self,
        renewal: Renewal,
        room: Room,
        launcher: Launcher,
        backoff: Backoff,
        requests: RequestQueue,
        *,
        on_loading: Callable[[float, str], None],
        on_steps: Callable[[], None],
        on_death: Callable[[CortexError], None],
        changed: Callable[[], None],
    ) -> None:
        self.fit: Fit | None = None
        self._doubtful_until = 0.0  # monotonic
        self.epochs = Epochs(
            renewal,
            launcher,
            backoff,
            on_loading=on_loading,
            on_steps=on_steps,
            on_death=on_death,
        )
        self.adapters = Adapters(launcher.config, room, requests, backoff)
        self.pool = Pool(self._on_resized)
        self._renewal = renewal
        self._room = room
        self._launcher = launcher
        self._parking = launcher.parking
        self._changed = changed

    # --- facts ------------------------------------------------------------------------------------------

    @property
    def doubtful(self) -> bool:
        """Whether its last load came to nothing though it had memory: nobody leaves for another that no
        request is for."""
        return time.monotonic() < self._doubtful_until

    @property
    def statistics(self) -> Statistics | None:
        """Of the epoch that is ready."""
        return self.epochs.statistics

    @property
    def prefixes(self) -> Prefixes | None:
        """Of prompts whose pages its worker holds; None while there is none."""
        return self.statistics.prefixes if self.statistics is not None else None

    @property
    def bytes_parked(self) -> int:
        """Of its weights, in the host's memory."""
        return self._parking.bytes_of(self._renewal.settings.id) if self._parking is not None else 0

    @property
    def reload_seconds(self) -> float:
        """That its next load should take, from files or from the host's memory; 0: not known."""
        return self.seconds_of_load(wakes=self.bytes_parked > 0)

    @property
    def seconds_saved(self) -> float:
        """That its return from the host's memory takes less than from files; no end: neither is known yet."""
        if self.epochs.load_seconds is None:
            return inf
        return max(0.0, self.epochs.load_seconds - (self.epochs.wake_seconds or 0.0))

    def wakes(self, fit: Fit) -> bool:
        """Whether a load with that fit brings its weights back from the host's memory: ranks that share them
        otherwise than those that parked them do not."""
        return self._launcher.wakes(self._renewal.settings, self._renewal.description, fit)

    def seconds_of_load(self, *, wakes: bool) -> float:
        """That such a load should take; 0: not known. A model that never came back from there is thought to
        do so as quickly as the last that did."""
        load = self.epochs.load_seconds or 0.0
        if not wakes:
            return load
        return self.epochs.wake_seconds or self._parking.wake_share * load

    # --- from a booking to its end ----------------------------------------------------------------------

    async def book(self, tenant: Tenant, on_place: Callable[[Place], None], spare: int) -> None:
        """Wait until it has memory.

        Args:
            tenant: the model, as the room sees it.
            on_place: told its place in the line.
            spare: bytes on each rank, over what the plan says.

        Raises:
            CortexError: INSUFFICIENT_MEMORY: it cannot have any.
        """
        reuse = self._renewal.description.engine == "transformer"
        self.fit = await self._room.take(tenant, on_place, reuse=reuse, spare=spare)

    async def fits(self, tenant: Tenant, spare: int = 0) -> bool:
        """Whether there is memory for it now, and `spare` as for `book`, without anybody leaving."""
        return (await self._room.prospect(tenant, spare)).verdict == "fits"

    def doubt(self, seconds: float = inf) -> None:
        """It came to nothing though it had memory; where that was too little, it is doubtful for a while."""
        self._doubtful_until = max(self._doubtful_until, time.monotonic() + seconds)

    def trust(self) -> None:
        """It is ready, or will be served by other settings."""
        self._doubtful_until = 0.0

    @property
    def spare(self) -> int:
        """Bytes on each rank to ask for on top, where the devices had less than what is booked."""
        return max(SPARE_BYTES, int(SPARE_SHARE * max(self.fit.rank_budgets, default=0)))

    async def start(self) -> None:
        """Start an epoch in what is booked, and return when it is ready.

        Raises:
            CortexError: why it does not get there.
        """
        self._open(await self.epochs.start(self.fit))

    async def start_again(self, error: CortexError, tell: Callable[[str], None]) -> None:
        """The same after a death.

        Args:
            error: why it died.
            tell: hears what is waited for.

        Raises:
            CortexError: it is given up.
        """
        self._open(await self.epochs.start_again(self.fit, error, tell))

    def lose_workers(self, error: CortexError) -> None:
        """The group died; what is booked stays, for the next. `error` is told when that may be there."""
        self.adapters.stop()
        self.pool.close()
        self.epochs.count_death()
        if self.epochs.load_seconds is not None:  # as it took last, it will be back by then
            error.retry_after = self.epochs.seconds_to_wait + self.epochs.load_seconds

    def end(self) -> None:
        """Give back what is booked. Its processes are gone, or never were."""
        self.fit = None
        self.adapters.close()
        self.pool.forget()
        self.epochs.forget()
        self._room.release(self._renewal.settings.id)

    def _open(self, ready: Sequence[Ready]) -> None:
        """What was measured counts from now on; the pool may be smaller or larger than planned."""
        self.trust()
        self.fit = self.fit.with_pages(self.statistics.kv_pages)
        settings, description = self._renewal.settings, self._renewal.description
        learn = description.overhead is not None
        self._room.correct(settings.id, self.fit, [report.memory for report in ready], learn=learn)
        self.adapters.open(settings, description, self.fit, self.epochs.group)
        self.pool.open(self.fit, self.epochs.group, all(report.resizable for report in ready))

    def _on_resized(self, pages: int, booked: Mapping[str, int]) -> None:
        """The pool has so many pages now; by what its booking changes."""
        self.fit = self.fit.resized(pages, self.statistics.measured)
        self.statistics.resize(pages, self.fit.rank_page_bytes)
        self._room.resized(self._renewal.settings.id, booked)
        self._changed()
