"""Who holds memory or wants some, as the room sees it (a model, or an adapter of one), and what it wants."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from ipc.errors import CortexError
from neuron.memory.eviction import Holder
from neuron.memory.fit import Fit
from neuron.memory.need import Need


class Tenant(Protocol):
    """A model, as far as its memory goes."""

    id: str
    ready_at: float  # monotonic: when it was ready last, or went on to serve
    reload_seconds: float  # that its next load should take; 0: not known

    def need(self, runtime: Mapping[str, int]) -> Need:
        """What a load asks of the devices; `runtime` is what a process takes without a model, by kind."""
        ...

    def holder(self, reserved: dict[str, int]) -> Holder:
        """What it holds, and whether it can leave."""
        ...

    @property
    def turn_ends(self) -> float | None:
        """When it may be asked to leave, monotonic; None: not before it is ready."""
        ...

    @property
    def turn_seconds(self) -> float:
        """How long it serves, at least, before it may be asked to leave."""
        ...

    @property
    def waits_since(self) -> float:
        """When the request came, monotonic, that has waited longest and has not begun; -inf: none waits; inf:
        only such as have begun."""
        ...

    def refuse(self, since: float, error: CortexError) -> bool:
        """Have those requests fail that have waited since then and have not begun, where others wait, too.
        Returns whether there are others; else all of the wish is refused."""
        ...

    @property
    def turn_left(self) -> float:
        """How long it takes until its turn is over, with what is left of its load, at a guess."""
        ...

    @property
    def seconds_to_leave(self) -> float:
        """How long it would take to end, at a guess."""
        ...

    def give_way(self) -> None:
        """Take nothing new, finish what runs, end, and `release`: another model needs its memory. Asked again
        it does nothing."""
        ...

    def interrupt(self) -> None:
        """What runs takes too long: have it wait, and go on where it was with the next load."""
        ...

    def stay(self) -> None:
        """Nobody needs its memory any more: take work again, unless it has begun to end."""
        ...

    def resize(self, pages: int) -> None:
        """Have its pool take so many pages more, which are booked, or give so many up and call `resized`;
        asked where its `Holder` has a pool that can."""
        ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a wish stands: the first has `position` 1."""

    position: int
    holders: tuple[str, ...]  # that it waits for


@dataclass(slots=True, eq=False)
class Wish:
    """One model's, for memory."""

    tenant: Tenant
    reuse: bool  # it takes over the waiting processes on its devices
    spare: int  # bytes on each rank over what was planned
    tell: Callable[[Place], None]
    made: float  # monotonic
    since: float  # the same, of the first one since its model had memory
    patience: float  # until when those that leave for it may finish what runs, monotonic
    turn: float  # since when it waits and what its load takes: its place in the line
    granted: asyncio.Future[Fit]
    leaving: tuple[str, ...] = ()  # who leaves for it in any case
    looked_at: bool = False  # once it is, however late that comes
    place: Place | None = None  # as it was told last
    victims: tuple[str, ...] = ()  # as the log has it last
    wanted_pages: int = 0  # that it would have taken, had others not shrunk their pools for it
    keeps: float = 0.0  # until when its model keeps its place, as those may come back who were refused
