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
from neuron.memory.need import Need, RankNeed
from workers.checkpoints.shares import ALONE, Split

HOST = "cpu"  # the device whose memory is the host's
CUDA_KV_SHARE = 0.95  # of what is left for it; the rest is for what a desktop takes from one hour to the next
CPU_KV_SHARE = 0.5  # memory is shared with everything else on the host
ONE_CONTEXT = 1.05  # of it, so that one has room even where a rank finds that it needs more than was planned
CPU_KV_DEFAULT = 2 << 30  # bytes a rank; more is taken only for one whole context


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
    rank_caches: tuple[CachePlan, ...] = ()
    split: Split = ALONE  # how the ranks share the model
    shrinks: Mapping[str, int] = field(default_factory=dict)  # pages that the pools of others give up for it
    wanted_pages: int = 0  # that it would have taken, had it not been for others; 0: no more than it has

    @property
    def caches(self) -> CachePlan:
        """Of the first rank. All have as many pages and states as this one, in bytes of their own."""
        return self.rank_caches[0] if self.rank_caches else CachePlan()

    @property
    def rank_page_bytes(self) -> tuple[int, ...]:
        """Of one page, on each rank."""
        return tuple(caches.page_bytes for caches in self.rank_caches) or (0,) * len(self.devices)

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
        return _by_device(self.devices, self.rank_page_bytes)

    def resized(self, pages: int, measured: Sequence[int]) -> Fit:
        """The same once the pool has that many pages.

        Args:
            measured: bytes that each rank held with the pages before. What was planned over that is free for
                others, so whoever restarts a rank has no more either.
        """
        more = pages - self.kv_pages
        reservations = Counter(self.reservations)
        reservations.update({name: more * size for name, size in self.page_bytes.items()})
        budgets = tuple(held + more * size for held, size in zip(measured, self.rank_page_bytes, strict=True))
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
    where even that does not do, the context is cut to what the pool holds. Ranks share the model in a way
    that is slower than the usual one only where it would not fit else, whoever left.

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
    smallest = min(need.context_length, SMALLEST_CONTEXT)
    staying = [holder for holder in holders if holder.model not in leaving]
    holders = [holder for holder in holders if holder.model != need.base]
    evictable = order(holders, need.priority, candidates, strategy)
    chosen = [holder for holder in evictable if holder.model in leaving]
    evictable = [holder for holder in evictable if holder.model not in leaving]
    free_then = _without(free, chosen)
    for context_length in dict.fromkeys((need.context_length, smallest)):
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
    empty = free if total is None else total
    if _place(need, candidates, empty, smallest) is None:
        for way in need.slower_ways(_devices(need, candidates, empty)):
            if _place(way, candidates, empty, smallest) is not None:
                return find_fit(way, free, holders, strategy, leaving, at_work, total)
        if total is not None:
            raise _too_large(need, candidates, total)
    raise _refusal(need, candidates, free, holders, at_work or {})


def candidates_for(need: Need, free: Collection[str]) -> list[str]:
    """Devices that may be used: the user's, else every GPU, else the CPU."""
    ranks = len(need.ranks)
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
    devices = _devices(need, candidates, free)
    fits = (_place_on(devices, way, free, context_length, shared) for way in need.ways(devices))
    return next((fit for fit in fits if fit is not None), None)


def _devices(need: Need, candidates: list[str], free: Mapping[str, int]) -> tuple[str, ...]:
    """The freest of them, one for each rank; or the only one, for all."""
    ranks = len(need.ranks)
    # Ranks keep the order of the devices: neighbours in the list are neighbours on the bus.
    freest = sorted(candidates, key=lambda name: -free[name])[:ranks]
    return tuple(name for name in candidates if name in freest) * (ranks // len(freest))


def _place_on(
    devices: tuple[str, ...], need: Need, free: Mapping[str, int], context_length: int, shared: bool
) -> Fit | None:
    """The same for ranks that share the model in this way, each on one of `devices`."""
    caches = [rank.caches for rank in need.ranks]
    fixed, sharing = need.fixed(devices), Counter(devices)
    free = Counter(free)  # what the pool may take
    free.subtract(_by_device(devices, [rank.beside for rank in need.ranks]))
    taken = _by_device(devices, fixed)
    room = [(free[name] - taken[name]) // sharing[name] for name in devices]  # of each rank, for its cache
    if min(room) < 0:
        return None
    states = min(
        rank.caches.states_in(size - (need.chosen_pool(rank) or 0), need.max_sequences)
        for rank, size in zip(need.ranks, room, strict=True)
    )
    room = [size - states * each.state_bytes for size, each in zip(room, caches, strict=True)]
    pages, most, wanted = _pages_in(room, devices, need, context_length, shared)
    if min(room) < 0 or pages < need.caches.pages_for(context_length):
        return None
    left = [size - pages * each.page_bytes for size, each in zip(room, caches, strict=True)]
    host_states = min(
        _host_states(need, rank, devices, free, size) for rank, size in zip(need.ranks, left, strict=True)
    )
    if HOST in devices:  # whose memory is the host's: there they are states like the others
        states, host_states = states + host_states, 0
    cached = [pages * each.page_bytes + states * each.state_bytes for each in caches]
    budgets = [size + of_cache for size, of_cache in zip(fixed, cached, strict=True)]
    reservations = _by_device(devices, budgets)
    if need.kv_memory is not None:  # it is kept to, though all else should take more than planned
        budgets = [free[name] // sharing[name] for name in devices]
    if host_states and HOST in free:
        reservations[HOST] = host_states * sum(each.state_bytes for each in caches)
    return Fit(
        devices=devices,
        reservations=reservations,
        rank_budgets=tuple(budgets),
        kv_pages=pages,
        most_pages=most,
        context_length=need.caches.longest(pages, need.context_length),
        states=states,
        host_states=host_states,
        rank_caches=tuple(caches),
        split=need.split,
        wanted_pages=wanted if shared and need.caches.page_bytes else 0,
    )


def _pages_in(
    room: Sequence[int], devices: Sequence[str], need: Need, context_length: int, shared: bool
) -> tuple[int, int, int]:
    """Pages that each rank has `room` for, those that it may have at most, and would have with no others."""
    pages = most = wanted = need.most_pages
    for rank, name, size in zip(need.ranks, devices, room, strict=True):
        if not (page_bytes := rank.caches.page_bytes):
            continue
        pool = _pool(need, rank, name, size)
        wanted = min(wanted, pool // page_bytes)
        if need.kv_memory is not None:
            most = min(most, need.kv_memory // page_bytes)
        elif shared:
            one_context = need.caches.pages_for(context_length) * page_bytes
            pool = min(pool, max(int(ONE_CONTEXT * one_context), pool // 2))
        pages = min(pages, pool // page_bytes)
    return min(pages, most), most, min(wanted, most)


def _by_device(devices: Sequence[str], sizes: Sequence[int]) -> dict[str, int]:
    """Bytes of ranks, one each."""
    total = Counter[str]()
    for name, size in zip(devices, sizes, strict=True):
        total[name] += size
    return dict(total)


def _host_states(
    need: Need, rank: RankNeed, devices: Sequence[str], free: Mapping[str, int], left: int
) -> int:
    """States for which a rank gets memory of the host: as many as it may have, or there is room for.

    Args:
        left: bytes on its device, for its cache.
    """
    if not rank.caches.state_bytes:
        return 0
    room = need.host_state_memory
    if HOST in devices:
        room = min(room, int(max(0, left) * CPU_KV_SHARE))
    elif HOST in free:
        room = min(room, int(free[HOST] * CPU_KV_SHARE) // len(devices))
    return room // rank.caches.state_bytes


def pool_share(device: str) -> float:
    """Of what is free, that a pool may take."""
    return CPU_KV_SHARE if device == HOST else CUDA_KV_SHARE


def _pool(need: Need, rank: RankNeed, device: str, room: int) -> int:
    """Bytes that the pool of a rank may take of the `room` that is left for it on `device`."""
    if (chosen := need.chosen_pool(rank)) is not None:
        return chosen if chosen <= room else 0
    if device != "cpu":
        return int(room * pool_share(device))
    one_context = need.caches.pages_for(need.context_length) * rank.caches.page_bytes
    return min(int(room * pool_share(device)), max(CPU_KV_DEFAULT, int(ONE_CONTEXT * one_context)))


def _smallest_pool(need: Need) -> int:
    """Bytes of a rank without whose keys and values it is not served."""
    pages = need.caches.pages_for(min(need.context_length, SMALLEST_CONTEXT))
    return pages * max(rank.caches.page_bytes for rank in need.ranks)


def _least(need: Need, candidates: list[str]) -> tuple[list[int], str]:
    """The bytes of each rank without which it cannot be loaded, and that in words."""
    pages = need.caches.pages_for(min(need.context_length, SMALLEST_CONTEXT))
    states = need.caches.states_in(0, need.max_sequences)
    needed = []
    for rank, size in zip(need.ranks, need.fixed(candidates[:1] * len(need.ranks)), strict=True):
        chosen, least = need.chosen_pool(rank), pages * rank.caches.page_bytes
        needed.append(size + (least if chosen is None else chosen) + states * rank.caches.state_bytes)
    shares = f" with shares of {':'.join(map(str, need.split.counts))}" if need.others else ""
    of_states = f", of which {states} states take {gib(states * need.caches.state_bytes)}" if states else ""
    return (
        needed,
        f"{need.model} needs at least {' and '.join(map(gib, needed))}, one amount a rank{shares}{of_states}",
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
