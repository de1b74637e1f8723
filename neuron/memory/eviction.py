"""Who leaves so that another model fits: who may, in which order, and what that costs.

Plain arithmetic of what is known, without a clock: a load, a quote and a simulation decide alike.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from ipc.messages.requests import Strategy
from ipc.sizes import gib

# Seconds after which a request counts half: long enough for the pauses of an agent, and short enough that one
# which is done is soon forgotten.
HALF_LIFE = 30.0
# Somebody else comes later, so how often a visit begins counts as well, for longer: in proportion to the half
# lives, and three times that. (`benchmarks.eviction`, eight traces: with `cheapest` waits are 8 % below those
# of `lru`, where who knows the future is 19 % below; with requests alone, and by cost for each byte, 5 %.)
VISIT_SECONDS = 60.0  # without a request; the next one begins a visit
VISIT_HALF_LIFE = 1800.0
VISIT_USES = 3 * HALF_LIFE / VISIT_HALF_LIFE
# Who left is missed on that host for as long as some twenty loads take: so many times, for each second of its
# load, a visit counts in what a quote says that an eviction costs. (Eight hosts on paper, four kinds of
# traces: p95 is 12 % below that of `lru`, 2 % where visits do not count there; foresight is 34 % below.)
MISSED_VISITS = 0.15
# Of the time that its load took, a model stays at least where another of its class wants its memory: two that
# swap all the time load for four fifths of it at most.
RESIDENCY_SHARE = 1 / 4
MOST_SETS = 256  # of models that would make room, that are looked at for the cheapest one


class _Fading:
    """A count of what counts less the longer ago it was."""

    def __init__(self, half_life: float) -> None:
        self._half_life = half_life
        self._count = 0.0
        self._counted_at = 0.0

    def add(self, now: float) -> None:
        self._count, self._counted_at = self.at(now) + 1.0, now

    def at(self, now: float) -> float:
        return self._count * 0.5 ** (max(0.0, now - self._counted_at) / self._half_life)


class RecentUse:
    """How much a model was used lately, and so how soon somebody may want it: by its requests, each counted
    when it ended, which say whether it is in use, and by its visits, which say how often it comes to be."""

    def __init__(self) -> None:
        self._requests = _Fading(HALF_LIFE)
        self._visits = _Fading(VISIT_HALF_LIFE)
        self._last = -inf

    def add(self, now: float) -> None:
        """One request, now (seconds on any clock)."""
        self._requests.add(now)
        if now - self._last >= VISIT_SECONDS:
            self._visits.add(now)
        self._last = now

    def requests(self, now: float) -> float:
        """As they count now."""
        return self._requests.at(now)

    def at(self, now: float) -> float:
        """The same with visits, each of which is a part of a request."""
        return self._requests.at(now) + VISIT_USES * self._visits.at(now)


@dataclass(frozen=True, slots=True)
class PoolShare:
    """What a model's pool of keys and values could give up for another model."""

    page_bytes: Mapping[str, int]  # of one page, by device
    spare: int = 0  # pages over what one whole context takes
    lacking: int = 0  # pages that it would take, if there were memory

    def spared(self, device: str) -> int:
        """Bytes on `device` that it can give up."""
        return self.spare * self.page_bytes.get(device, 0)


@dataclass(frozen=True, slots=True)
class Holder:
    """A model that holds memory. `last_used` orders them by age."""

    model: str
    reserved: dict[str, int]  # bytes by device
    priority: int
    last_used: float
    pinned: bool = False
    busy: bool = False  # it has requests to finish, or is on its way up, before it can leave
    leaving: bool = False  # it leaves already, whoever asked for that
    settled: bool = True  # it has had its residency, so it leaves for its equals, too
    reload_seconds: float = 0.0  # that it takes to come back
    recent_use: float = 0.0  # as `RecentUse` has it,
    recent_requests: float = 0.0  # and the part of it that are requests
    pool: PoolShare | None = None  # None: its pool is of one size, or about to change
    changes: bool = False  # its pool shrinks or grows: what it can spare is known in a moment
    # bytes by device that its pool gives up now, and `reserved` has no more
    coming: Mapping[str, int] = field(default_factory=dict)

    def freed(self, devices: Collection[str]) -> int:
        """Bytes that come free on `devices` when it leaves."""
        return sum(size for name, size in self.reserved.items() if name in devices)

    def shrunk(self, pages: int) -> Holder:
        """The same once its pool has given up so many."""
        given = {name: pages * size for name, size in self.pool.page_bytes.items()}
        reserved = {name: size - given.get(name, 0) for name, size in self.reserved.items()}
        return replace(self, reserved=reserved, pool=replace(self.pool, spare=self.pool.spare - pages))

    def loss(self, strategy: Strategy) -> float:
        """Seconds that whoever wants it next will wait, at a guess: none does soon, where none did lately,
        and by `cost` one may in a while, where there are visits now and then.
        """
        visits = self.recent_use - self.recent_requests if strategy == "cost" else 0.0
        times = MISSED_VISITS * self.reload_seconds
        return self.reload_seconds * min(1.0, self.recent_requests + times * visits)

    @property
    def worth(self) -> float:
        """What its eviction costs: seconds of its return, for each who may want it, by its priority."""
        return self.reload_seconds * self.recent_use * max(1, self.priority)

    def cost(self, devices: Collection[str]) -> float:
        """Of its eviction, for each byte that it frees on `devices`."""
        return self.worth / max(1, self.freed(devices))


def residency(least: float, reload_seconds: float) -> float:
    """Seconds that a model stays where another of its class wants its memory: `least`, or more of them where
    its next load will take long."""
    return max(least, RESIDENCY_SHARE * reload_seconds)


def stays(holder: Holder, priority: int) -> str | None:
    """Why `holder` does not leave for a model of that priority, whatever happens; None: it does, once it has
    nothing to do."""
    if holder.pinned:
        return "is pinned"
    if holder.priority > priority and not holder.leaving:
        return f"has priority {holder.priority}, above its {priority}"
    return None


def must_wait(holder: Holder, priority: int) -> bool:
    """Whether it leaves for a model of that priority, but not now."""
    return holder.busy or holder.leaving or not (holder.settled or holder.priority < priority)


def order(
    holders: Iterable[Holder], priority: int, devices: Collection[str], strategy: Strategy
) -> list[Holder]:
    """Those that may leave for a model of that priority on `devices`, the first to leave first.

    Who leaves already costs nothing; those that can leave now come before those that cannot.
    """
    scores = {
        "cost": lambda holder: holder.cost(devices),
        "lru": lambda holder: 0,
        "priority": lambda holder: holder.priority,
    }
    score = scores[strategy]
    return sorted(
        (holder for holder in holders if stays(holder, priority) is None and holder.freed(devices)),
        key=lambda holder: (
            not holder.leaving,
            holder.busy,
            must_wait(holder, priority),
            score(holder),
            holder.last_used,
            holder.model,
        ),
    )


def cheapest(
    victims: Sequence[Holder],
    holders: Iterable[Holder],
    priority: int,
    does: Callable[[list[Holder]], bool],
) -> list[Holder]:
    """Of `holders` those who would leave in the place of `victims`, since together they cost less.

    Who is cheap for each byte may be dear for the few bytes that are wanted. Sets are looked at from the
    cheapest on, and no more than `MOST_SETS` of them.

    Args:
        victims: who would make room; the answer where they cost least, or have to be waited for.
        holders: that may leave for a model of `priority`.
        does: whether there is room once these have left.
    """
    if any(must_wait(holder, priority) for holder in victims):
        return list(victims)
    able = sorted(
        (holder for holder in holders if not must_wait(holder, priority)),
        key=lambda holder: (holder.worth, holder.last_used, holder.model),
    )
    most = sum(holder.worth for holder in victims)
    # Each set is followed by the one with the next holder too, and by the one with that in its last's place.
    sets = [(holder.worth, (place,)) for place, holder in enumerate(able[:1])]
    for _ in range(MOST_SETS):
        if not sets or sets[0][0] >= most:
            break
        worth, places = heapq.heappop(sets)
        chosen = [able[place] for place in places]
        if does(chosen):
            return chosen
        if (following := places[-1] + 1) < len(able):
            more = worth + able[following].worth
            heapq.heappush(sets, (more, (*places, following)))
            heapq.heappush(sets, (more - chosen[-1].worth, (*places[:-1], following)))
    return list(victims)


def explain(
    victims: Sequence[Holder],
    others: Iterable[Holder],
    priority: int,
    devices: Collection[str],
    strategy: Strategy,
    now: float,
) -> str:
    """What was chosen and why, for the log: the numbers that the strategy went by, and why others stay.

    Args:
        now: on the clock of `last_used`.
    """

    def numbers(holder: Holder) -> str:
        idle = f"used {now - holder.last_used:.1f} s ago"
        if strategy == "priority":
            return f"priority {holder.priority}, {idle}"
        if strategy == "lru":
            return idle
        return (
            f"{holder.reload_seconds:.2f} s to load x {holder.recent_use:.2f} uses x priority "
            f"{holder.priority} / {gib(holder.freed(devices))}"
        )

    def listed(named: Iterable[tuple[Holder, str]]) -> str:
        return ", ".join(f"{holder.model} ({why})" for holder, why in named) or "none"

    leave = listed((holder, numbers(holder)) for holder in victims)
    stay = listed(
        (holder, stays(holder, priority) or numbers(holder)) for holder in others if holder.freed(devices)
    )
    return f"strategy={strategy} leave={leave}; stay={stay}"
