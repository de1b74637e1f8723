"""Where a model goes, how large its KV pool gets, and who has to leave for it. Plain arithmetic, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ipc.errors import Code, CortexError
from ipc.messages.requests import Strategy
from ipc.sizes import gib
from ipc.worker_messages import SMALLEST_CONTEXT
from neuron.memory.cache_plan import CachePlan
from neuron.memory.eviction import Holder, cheapest, order, stays

HOST = "cpu"  # the device whose memory is the host's
CUDA_KV_SHARE = 0.95  # of what is left for it; the rest is for what a desktop takes from one hour to the next
CPU_KV_SHARE = 0.5  # memory is shared with everything else on the host
ONE_CONTEXT = 1.05  # of it, so that one has room even where a rank finds that it needs more than was planned
CPU_KV_DEFAULT = 2 << 30  # bytes a rank; more is taken only for one whole context


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a model needs. `rank_bytes` holds the weights of each rank; overhead and pool come on top.

    Overhead is the process itself and what its largest step takes, for each kind of device.
    """

    model: str
    rank_bytes: tuple[int, ...]
    caches: CachePlan  # of each rank
    context_length: int
    max_sequences: int
    kv_memory: int | None = None  # bytes of the pool on each rank, where the user chose it
    devices: tuple[str, ...] | None = None  # where the user wants it
    priority: int = 100
    cpu_overhead: int = 0  # bytes
    cuda_overhead: int = 0
    beside: int = 0  # bytes that the pool of each rank leaves free, for what may come: not booked
    base: str = ""  # who does not leave for it, for without that one it is of no use
    host_state_memory: int = 0  # bytes of the host, for states of each rank that leave its device, at most

    def fixed_bytes(self, rank: int, device: str) -> int:
        """Bytes of `rank` on `device`, without its pages and states."""
        overhead = self.cpu_overhead if device == "cpu" else self.cuda_overhead
        return self.rank_bytes[rank] + overhead

    @property
    def most_pages(self) -> int:
        """Of each rank, that all its sequences together can fill."""
        return self.max_sequences * self.caches.pages_for(self.context_length)

    @property
    def chosen_pool(self) -> int | None:
        """Bytes of the pool on each rank, where the user chose them: no more than it can fill."""
        if self.kv_memory is None:
            return None
        return min(self.kv_memory, self.most_pages * self.caches.page_bytes)


@dataclass(frozen=True, slots=True)
class Fit:
    """The outcome: one device a rank, bytes to reserve by device, and what the pool allows.

    `kv_pages` follow from the plan. A rank that measures less than that takes more of them, up to
    `most_pages`, and one that measures more takes fewer: `rank_budgets` hold in either case.
    """

    devices: tuple[str, ...]
    reservations: dict[str, int]
    rank_budgets: tuple[int, ...]  # bytes
    kv_pages: int
    most_pages: int
    context_length: int
    states: int = 0  # on each rank, where layers keep one
    host_states: int = 0  # for each rank, of those that left its device
    victims: tuple[str, ...] = field(default=())
    caches: CachePlan = field(default_factory=CachePlan)
    shrinks: Mapping[str, int] = field(default_factory=dict)  # pages that the pools of others give up for it
    wanted_pages: int = 0  # that it would have taken, had it not been for others; 0: no more than it has

    @property
    def kv_tokens(self) -> int:
        """Tokens that the pool holds, of all sequences together."""
        return self.caches.tokens_in(self.kv_pages)

    @property
    def elsewhere(self) -> dict[str, int]:
        """What is reserved on no device of a rank: memory of the host, for a model on GPUs."""
        return {name: size for name, size in self.reservations.items() if name not in self.devices}

    def with_pages(self, pages: int) -> Fit:
        """The same with a pool as large as ranks found that it is."""
        context_length = self.caches.longest(pages, self.context_length)
        return replace(self, kv_pages=pages, context_length=context_length)

    @property
    def page_bytes(self) -> dict[str, int]:
        """Of one page, by device: each rank has one."""
        return {name: count * self.caches.page_bytes for name, count in Counter(self.devices).items()}

    def resized(self, pages: int, measured: Sequence[int]) -> Fit:
        """The same once the pool has that many pages.

        Args:
            measured: bytes that each rank held with the pages before. What was planned over that is free for
                others, so whoever restarts a rank has no more either.
        """
        grown = (pages - self.kv_pages) * self.caches.page_bytes
        reservations = Counter(self.reservations)
        for name in self.devices:
            reservations[name] += grown
        budgets = tuple(size + grown for size in measured)
        return replace(self, kv_pages=pages, reservations=dict(reservations), rank_budgets=budgets)


def find_fit(
    need: Need,
    free: dict[str, int],
    holders: Sequence[Holder],
    strategy: Strategy,
    leaving: Collection[str] = (),
    at_work: Mapping[str, Mapping[str, int]] | None = None,
    total: Mapping[str, int] | None = None,
) -> Fit:
    """Find room for `need`, with as little eviction as possible.

    A whole context comes first: where it does not fit, the pools of others shrink, and then they leave. Only
    where even that does not do, the context is cut to what the pool holds.

    Args:
        free: bytes by device that nobody holds. Names tell the kind: "cpu" or "cuda:N".
        holders: all models that hold memory now.
        strategy: who leaves first (`neuron.memory.eviction`).
        leaving: holders that shall leave for it, whether it would fit beside them or not.
        at_work: who else works, and the bytes by device that they hold until that is done.
        total: bytes by device if nobody held any; None: nobody knows.

    Raises:
        CortexError: INSUFFICIENT_MEMORY saying who holds what; MODEL_TOO_LARGE where nobody has to hold
            anything for it not to fit.
    """
    candidates = candidates_for(need, free)
    if need.kv_memory is not None and need.kv_memory < _smallest_pool(need):
        raise CortexError(
            Code.MODEL_TOO_LARGE,
            f"{need.model} has kv_memory {need.kv_memory}, and keys and values of "
            f"{min(need.context_length, SMALLEST_CONTEXT)} tokens take {_smallest_pool(need)} bytes a rank",
        )
    staying = [holder for holder in holders if holder.model not in leaving]
    holders = [holder for holder in holders if holder.model != need.base]
    evictable = order(holders, need.priority, candidates, strategy)
    chosen = [holder for holder in evictable if holder.model in leaving]
    evictable = [holder for holder in evictable if holder.model not in leaving]
    free_then = _without(free, chosen)
    for context_length in dict.fromkeys((need.context_length, min(need.context_length, SMALLEST_CONTEXT))):
        for victims in _growing(evictable):
            if _place(need, candidates, _without(free_then, victims), context_length) is not None:
                victims = _spare(need, candidates, free_then, victims, context_length)
                if strategy == "cost" and victims:
                    does = partial(_does, need, candidates, free_then, context_length)
                    victims = cheapest(victims, evictable, need.priority, does)
                    victims = _spare(need, candidates, free_then, victims, context_length)
                fit = _place(need, candidates, _without(free_then, victims), context_length)
                return replace(fit, victims=tuple(victim.model for victim in (*chosen, *victims)))
            if not victims and (fit := _beside(need, candidates, free_then, staying, context_length)):
                return replace(fit, victims=tuple(victim.model for victim in chosen))
    smallest = min(need.context_length, SMALLEST_CONTEXT)
    if total is not None and _place(need, candidates, total, smallest) is None:
        raise _too_large(need, candidates, total)
    raise _refusal(need, candidates, free, holders, at_work or {})


def candidates_for(need: Need, free: Collection[str]) -> list[str]:
    """Devices that may be used: the user's, else every GPU, else the CPU."""
    ranks = len(need.rank_bytes)
    chosen = list(need.devices or [name for name in free if name != "cpu"] or ["cpu"])
    if missing := [name for name in chosen if name not in free]:
        raise CortexError(
            Code.MODEL_TOO_LARGE,
            f"{need.model} wants device {', '.join(missing)}; this neuron has {', '.join(free) or 'none'}",
        )
    if chosen != ["cpu"] and len(chosen) < ranks:
        raise CortexError(
            Code.MODEL_TOO_LARGE,
            f"{need.model} wants {ranks} ranks, one a GPU, and there are {len(chosen)}: {', '.join(chosen)}",
        )
    return chosen


def _growing(holders: list[Holder]) -> Iterator[list[Holder]]:
    """Nobody, the first, the first two, and so on."""
    for count in range(len(holders) + 1):
        yield holders[:count]


def _without(free: dict[str, int], victims: list[Holder]) -> dict[str, int]:
    total = Counter(free)
    for victim in victims:
        total.update(victim.reserved)
    return {name: total[name] for name in free}


def _does(
    need: Need, candidates: list[str], free: dict[str, int], context_length: int, victims: list[Holder]
) -> bool:
    """Whether there is room once these have left."""
    return _place(need, candidates, _without(free, victims), context_length) is not None


def _spare(
    need: Need, candidates: list[str], free: dict[str, int], victims: list[Holder], context_length: int
) -> list[Holder]:
    """Leave out of `victims`, which come in the order of what they cost, whoever need not go after all."""
    for victim in reversed(victims):
        fewer = [other for other in victims if other is not victim]
        if _place(need, candidates, _without(free, fewer), context_length) is not None:
            victims = fewer
    return victims


def _beside(
    need: Need, candidates: list[str], free: dict[str, int], holders: list[Holder], context_length: int
) -> Fit | None:
    """A place beside `holders`, whose pools shrink for it: those that can spare most, and no more than that.

    Nobody's pool becomes smaller than one whole context, and it takes half of what is there, if that is more
    than a whole context of its own.
    """
    pools = {holder.model: holder.pool for holder in holders if holder.pool is not None}
    if not pools:
        return None
    spared = Counter(free)
    for pool in pools.values():
        spared.update({name: pool.spared(name) for name in pool.page_bytes if name in spared})
    if (fit := _place(need, candidates, spared, context_length, shared=True)) is None:
        return None
    short = Counter(fit.reservations)
    short.subtract({name: free[name] for name in fit.reservations})
    shrinks = {}
    for model, pool in sorted(pools.items(), key=lambda item: -sum(map(item[1].spared, candidates))):
        asked = [
            -(-short[name] // size) for name, size in pool.page_bytes.items() if size and short[name] > 0
        ]
        if pages := min(pool.spare, max(asked, default=0)):
            shrinks[model] = pages
            short.subtract({name: pages * size for name, size in pool.page_bytes.items()})
    return replace(fit, shrinks=shrinks)


def _place(
    need: Need, candidates: list[str], free: Mapping[str, int], context_length: int, shared: bool = False
) -> Fit | None:
    """Put the ranks on the freest candidates, with a pool for `context_length` tokens at least; None: no.

    Args:
        shared: others give up memory for it, so it takes a whole context or half of it.
    """
    ranks = len(need.rank_bytes)
    # Ranks keep the order of the devices: neighbours in the list are neighbours on the bus.
    freest = sorted(candidates, key=lambda name: -free[name])[:ranks]
    devices = tuple(name for name in candidates if name in freest) * (ranks // len(freest))
    fixed = Counter[str]()
    free = dict(free)  # what the pool may take
    for rank, name in enumerate(devices):
        fixed[name] += need.fixed_bytes(rank, name)
        free[name] -= need.beside
    if any(size > free[name] for name, size in fixed.items()):
        return None
    sharing = Counter(devices)
    room = {name: (free[name] - size) // sharing[name] for name, size in fixed.items()}
    left = min(room.values()) - (need.chosen_pool or 0)
    states = need.caches.states_in(left, need.max_sequences)
    of_states = states * need.caches.state_bytes
    if any(size < of_states for size in room.values()):
        return None
    pool = wanted = min(_pool(need, name, size - of_states) for name, size in room.items())
    page_bytes = need.caches.page_bytes
    if shared and need.kv_memory is None:
        one_context = need.caches.pages_for(context_length) * page_bytes
        pool = min(pool, max(int(ONE_CONTEXT * one_context), pool // 2))
    most = need.most_pages
    if page_bytes and need.kv_memory is not None:
        most = min(most, need.kv_memory // page_bytes)
    pages = min(most, pool // page_bytes) if page_bytes else most
    if pages < need.caches.pages_for(context_length):
        return None
    kept = pages * page_bytes + of_states
    host_states = _host_states(need, devices, free, min(room.values()) - kept)
    if HOST in devices:  # whose memory is the host's: there they are states like the others
        states, kept, host_states = states + host_states, kept + host_states * need.caches.state_bytes, 0
    budgets = [need.fixed_bytes(rank, name) + kept for rank, name in enumerate(devices)]
    if need.kv_memory is not None:  # it is kept to, though all else should take more than planned
        budgets = [free[name] // sharing[name] for name in devices]
    reservations = {name: size + sharing[name] * kept for name, size in fixed.items()}
    if host_states and HOST in free:
        reservations[HOST] = ranks * host_states * need.caches.state_bytes
    return Fit(
        devices=devices,
        reservations=reservations,
        rank_budgets=tuple(budgets),
        kv_pages=pages,
        most_pages=most,
        context_length=need.caches.longest(pages, need.context_length),
        states=states,
        host_states=host_states,
        caches=need.caches,
        wanted_pages=min(most, wanted // page_bytes) if shared and page_bytes else 0,
    )


def _host_states(need: Need, devices: Sequence[str], free: Mapping[str, int], left: int) -> int:
    """States for which each rank gets memory of the host: as many as it may have, or there is room for.

    Args:
        left: bytes on a rank's device, for its cache.
    """
    if not need.caches.state_bytes:
        return 0
    room = need.host_state_memory
    if HOST in devices:
        room = min(room, int(max(0, left) * CPU_KV_SHARE))
    elif HOST in free:
        room = min(room, int(free[HOST] * CPU_KV_SHARE) // len(devices))
    return room // need.caches.state_bytes


def pool_share(device: str) -> float:
    """Of what is free, that a pool may take."""
    return CPU_KV_SHARE if device == HOST else CUDA_KV_SHARE


def _pool(need: Need, device: str, room: int) -> int:
    """Bytes that the pool of one rank may take of the `room` that is left for it on `device`."""
    if need.chosen_pool is not None:
        return need.chosen_pool if need.chosen_pool <= room else 0
    if device != "cpu":
        return int(room * pool_share(device))
    one_context = need.caches.pages_for(need.context_length) * need.caches.page_bytes
    return min(int(room * pool_share(device)), max(CPU_KV_DEFAULT, int(ONE_CONTEXT * one_context)))


def _smallest_pool(need: Need) -> int:
    """Bytes on each rank without whose keys and values it is not served."""
    return need.caches.pages_for(min(need.context_length, SMALLEST_CONTEXT)) * need.caches.page_bytes


def _least(need: Need, candidates: list[str]) -> tuple[list[int], str]:
    """The bytes of each rank without which it cannot be loaded, and that in words."""
    pool = need.chosen_pool if need.chosen_pool is not None else _smallest_pool(need)
    states = need.caches.states_in(0, need.max_sequences)
    pool += states * need.caches.state_bytes
    of_states = f", of which {states} states take {gib(states * need.caches.state_bytes)}" if states else ""
    needed = [need.fixed_bytes(rank, candidates[0]) + pool for rank in range(len(need.rank_bytes))]
    return (
        needed,
        f"{need.model} needs at least {' and '.join(map(gib, needed))}, one amount a rank{of_states}",
    )


def _shown(sizes: Mapping[str, int], devices: list[str]) -> str:
    return ", ".join(f"{gib(sizes[name])} on {name}" for name in devices)


def _too_large(need: Need, candidates: list[str], total: Mapping[str, int]) -> CortexError:
    needed, told = _least(need, candidates)
    return CortexError(
        Code.MODEL_TOO_LARGE,
        f"{told}; with nothing else loaded there would be {_shown(total, candidates)}",
        details={"needed": needed, "total": {name: total[name] for name in candidates}},
    )


def _refusal(
    need: Need,
    candidates: list[str],
    free: dict[str, int],
    holders: Sequence[Holder],
    at_work: Mapping[str, Mapping[str, int]],
) -> CortexError:
    needed, told = _least(need, candidates)
    there = {
        holder.model: (holder.reserved, stays(holder, need.priority) or "could leave, which is not enough")
        for holder in holders
    }
    there |= {who: (sizes, "work") for who, sizes in at_work.items()}
    held = {
        who: here
        for who, (sizes, _) in there.items()
        if (here := {name: size for name, size in sizes.items() if name in candidates})
    }
    who_holds = "".join(
        f"; {who} {'hold' if who in at_work else 'holds'} "
        + ", ".join(f"{gib(size)} on {name}" for name, size in sizes.items())
        + f" and {there[who][1]}"
        for who, sizes in held.items()
    )
    return CortexError(
        Code.INSUFFICIENT_MEMORY,
        f"{told}; free are {_shown(free, candidates)}" + who_holds,
        retry_after=5.0 if held.keys() - at_work.keys() else None,
        details={"needed": needed, "free": free, "held": held},
    )
