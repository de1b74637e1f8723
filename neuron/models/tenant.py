"""A model as the room sees it: what it needs, what it holds, how much it is used, and when it can leave."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from ipc.errors import CortexError
from ipc.messages.state import ModelStatus
from neuron.admission.request_queue import RequestQueue
from neuron.memory.eviction import Holder, RecentUse, residency
from neuron.memory.fit import Fit
from neuron.memory.need import Need
from neuron.models.load_news import LoadNews
from neuron.tenancy.renewal import Renewal
from neuron.tenancy.tenancy import Tenancy


class ModelTenant:
    """Implements `neuron.memory.wish.Tenant`.

    Args:
        renewal: what the model is served by.
        tenancy: what it has while it is loaded.
        requests: of the model.
        news: of how a load goes.
        turn_seconds: that it serves before it leaves though it is in use, at least.
        status: says how it stands.
        leave: called where another model needs its memory.
        interrupt: called where it needs that before what runs has ended.
        stay: called where no other does any more.

    Attributes:
        last_used: when somebody last had to do with it, monotonic.
        ready_at: when it was ready last, or went on to serve, monotonic.
    """

    def __init__(
        self,
        renewal: Renewal,
        tenancy: Tenancy,
        requests: RequestQueue,
        news: LoadNews,
        turn_seconds: float,
        status: Callable[[], ModelStatus],
        leave: Callable[[], None],
        interrupt: Callable[[], None],
        stay: Callable[[], None],
    ) -> None:
        self.id = renewal.settings.id
        self.last_used = time.monotonic()
        self.ready_at = 0.0
        self._renewal = renewal
        self._tenancy = tenancy
        self._requests = requests
        self._news = news
        self._turn_seconds = turn_seconds
        self._status = status
        self._leave = leave
        self._interrupt = interrupt
        self._stay = stay
        self._use = RecentUse()

    # --- what it came to --------------------------------------------------------------------------------

    def begin_turn(self) -> None:
        """It is ready, or goes on to serve."""
        self.ready_at = time.monotonic()

    def ask(self) -> None:
        """Somebody asks for it."""
        self.last_used = time.monotonic()

    def use(self) -> None:
        """A request for it ended, or a load was wished for."""
        self.last_used = time.monotonic()
        self._use.add(self.last_used)

    @property
    def worth_parked(self) -> float:
        """Seconds that its return from there saves, for each who may want it, by its priority; who waits for
        it now is one of them."""
        uses = self._use.at(time.monotonic()) + (not self._requests.idle)
        return self._tenancy.seconds_saved * uses * max(1, self._renewal.settings.priority) if uses else 0.0

    # --- for the room -----------------------------------------------------------------------------------

    @property
    def reload_seconds(self) -> float:
        """That its next load should take, from files or from the host's memory; 0: not known."""
        return self._tenancy.reload_seconds

    def wakes(self, fit: Fit) -> bool:
        """Whether a load with that fit brings its weights back from the host's memory."""
        return self._tenancy.wakes(fit)

    def seconds_of_load(self, *, wakes: bool) -> float:
        """That such a load should take; 0: not known."""
        return self._tenancy.seconds_of_load(wakes=wakes)

    def need(self, runtime: Mapping[str, int]) -> Need:
        return self._renewal.description.need(self._renewal.settings, runtime)

    def holder(self, reserved: dict[str, int]) -> Holder:
        settings, pool, status = self._renewal.settings, self._tenancy.pool, self._status()
        coming, now = pool.coming, time.monotonic()
        return Holder(
            model=self.id,
            reserved={name: size - coming.get(name, 0) for name, size in reserved.items()},
            priority=settings.priority,
            last_used=self.last_used,
            pinned=settings.pin and not self._tenancy.doubtful,  # others wait for how this load ends
            busy=status in ("waiting", "loading") or not self._requests.idle,
            leaving=status in ("draining", "unloading"),
            reload_seconds=self.reload_seconds,
            recent_use=self._use.at(now),
            recent_requests=self._use.requests(now),
            pool=pool.share if status == "ready" else None,
            coming=coming,
            changes=pool.changes,
        )

    @property
    def turn_ends(self) -> float | None:
        if self._status() not in ("ready", "draining"):
            return None
        return self.ready_at + self.turn_seconds

    @property
    def turn_seconds(self) -> float:
        return residency(self._turn_seconds, self.reload_seconds)

    @property
    def waits_since(self) -> float:
        return self._requests.waits_since()

    def refuse(self, since: float, error: CortexError) -> bool:
        return self._requests.refuse(since, error)

    @property
    def turn_left(self) -> float:
        if (ends := self.turn_ends) is not None:
            return max(0.0, ends - time.monotonic())
        left = self._news.progress.seconds_left
        return (self.reload_seconds if left is None else left) + self.turn_seconds

    @property
    def seconds_to_leave(self) -> float:
        return 0.0 if self._requests.idle else self.turn_left + self._requests.seconds_in_worker

    def give_way(self) -> None:
        self._leave()

    def interrupt(self) -> None:
        self._interrupt()

    def stay(self) -> None:
        self._stay()

    def resize(self, pages: int) -> None:
        self._tenancy.pool.resize(pages)
