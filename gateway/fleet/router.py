"""The router: which neuron loads a model. Pure functions of what is known.

Where a model is loaded already, `gateway.fleet.score` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Protocol, TypeVar

from gateway.fleet.directory import Copies, is_coming
from gateway.fleet.score import order, some
from ipc.errors import CortexError
from ipc.messages.replies import Quoted
from ipc.messages.state import Device, ModelState

# A load that goes on is waited for, and no second one begun, unless that would be there in so small a part of
# the time, and so many seconds sooner. What is left of a load is a guess, and all processes must agree.
SOONER_SHARE = 1 / 3
SOONER_SECONDS = 5.0

# Where all copies of a model are full, one more is loaded if requests would begin there in so small a part of
# the time that they wait, and if that is some seconds. Idle models may leave for it, busy ones do not.
SECOND_SHARE = 1 / 2
SECOND_SECONDS = 5.0

# What a neuron says of a model (`Quoted`), or is known of it, from the best to the worst. Where a model waits
# for memory already comes before where another would have to leave for a second copy of it.
PARKED = 0.5  # by so much its rank is better where the weights are in the host's memory
_RANKS = {
    "ready": 0,
    "loading": 1,
    "fits": 2,
    "waiting": 3,
    "evicts": 4,
    "pulls": 5,
    "waits": 6,
    "unknown": 7,
    "refused": 8,
}
_AWAY = frozenset(("unloaded", "unloading", "failed"))


class Host(Protocol):
    """What the router must know of a neuron."""

    name: str
    healthy: bool  # it answers
    heard: bool  # it has told its models
    draining: bool
    models: Mapping[str, ModelState]  # as it said last
    devices: Sequence[Device]
    in_flight: Mapping[str, int]  # our own requests, by model

    def is_shaky(self, model: str) -> bool:
        """Whether it fails requests to that model, or is silent: others come first."""
        ...


H = TypeVar("H", bound=Host)


def few(copies: Copies[H], model: str, count: int) -> list[H]:
    """At most that many of the hosts that would have to load a model; first those that do so already."""
    chosen = dict.fromkeys([*copies.coming[:count], *some(copies.others, count, model)])
    return list(chosen)[:count]


def best(hosts: Sequence[H], model: str, quotes: Mapping[str, Quoted | CortexError]) -> tuple[H, str]:
    """The neuron where a request for a model that is not loaded begins soonest, and why.

    Args:
        quotes: what the neurons said of it, by their names; who is not there did not answer in time.
    """
    soonest = min((quote.seconds for quote in quotes.values() if _would_fit(quote)), default=inf)
    # All processes must agree, and a hub may answer one host between the quotes for two of them.
    sized = all(quote.bytes_to_pull for quote in quotes.values() if _is_pulled(quote))
    costs = [_cost(host, model, quotes.get(host.name), soonest, sized) for host in hosts]
    least = min(costs)
    equals = [host for host, cost in zip(hosts, costs, strict=True) if cost == least]
    host = min(equals, key=lambda host: order(host.name, model)) if len(equals) > 1 else equals[0]
    return host, _reason(host, model, quotes.get(host.name))


def is_on_its_way(host: Host, model: str, quote: Quoted | CortexError | None) -> bool:
    """Whether no load has to begin there for a request."""
    return is_coming(host, model) or (isinstance(quote, Quoted) and quote.verdict in ("ready", "loading"))


def choices(
    hosts: Sequence[H], model: str, quotes: Mapping[str, Quoted | CortexError]
) -> tuple[list[H], list[H]]:
    """Of those that would load it the best ones, which are equal but for seconds and for what else they load,
    and the others; the best first.
    """
    costs = {
        host: (_cost(host, model, quote, inf, True), order(host.name, model))
        for host in hosts
        if isinstance(quote := quotes.get(host.name), Quoted) and quote.verdict != "refused"
    }
    found = sorted(costs, key=costs.__getitem__)
    equals = [host for host in found if costs[host][0][:2] == costs[found[0]][0][:2]]
    return equals, found[len(equals) :]


def second(
    hosts: Sequence[H], model: str, quotes: Mapping[str, Quoted | CortexError], waits: float, each: float
) -> dict[H, float]:
    """Where to load one more copy of a model, or where one is coming, for a request that begins there sooner.

    Args:
        hosts: that have the model, and not loaded.
        waits: seconds that it would wait where the model is loaded.
        each: seconds that one request makes the next one wait where all places are taken.

    Returns:
        Seconds until it is there, the soonest first; of hosts where it is coming, if there are any. None: it
        is not worth that.
    """
    if waits < SECOND_SECONDS:
        return {}
    coming: dict[H, float] = {}
    others: dict[H, float] = {}
    for host in hosts:
        comes, seconds = _until_there(host, model, quotes.get(host.name))
        if seconds < inf and not host.is_shaky(model):
            (coming if comes else others)[host] = seconds + host.in_flight.get(model, 0) * each
    for found in (coming, others):  # rather wait for a copy that comes than load one more
        if worth := {host: seconds for host, seconds in found.items() if seconds < SECOND_SHARE * waits}:
            best_first = sorted(worth, key=lambda host: (worth[host], order(host.name, model)))
            return {host: worth[host] for host in best_first}
    return {}


def _until_there(host: Host, model: str, quote: Quoted | CortexError | None) -> tuple[bool, float]:
    """Whether a copy is on its way, and the seconds until it is there; else until a new one would be, where
    no busy model leaves for it.
    """
    state = host.models.get(model)
    told = quote if isinstance(quote, Quoted) else None
    if is_coming(host, model) or (told is not None and told.verdict == "loading"):
        left = state.seconds_left if state is not None else None
        return True, left if left is not None else (told.seconds or 0.0) if told is not None else 0.0
    if told is None or told.verdict not in ("fits", "evicts") or told.ahead or told.seconds is None:
        return False, inf
    return False, told.seconds + told.loss


def _would_fit(quote: Quoted | CortexError) -> bool:
    return isinstance(quote, Quoted) and quote.verdict == "fits" and quote.seconds is not None


def _cost(
    host: Host, model: str, quote: Quoted | CortexError | None, soonest: float, sized: bool
) -> tuple[float, ...]:
    """The least of these is best: whether it failed lately, rank, loads that come first, seconds of this
    request and of those who want the evicted models next, models that leave, bytes that have to come
    from a hub, free memory to the next power of two.

    Args:
        soonest: seconds of a load where it fits.
        sized: all know how many bytes would have to come.
    """
    state = host.models.get(model)
    coming, left = is_coming(host, model), state.seconds_left if state is not None else None
    if not coming and isinstance(quote, Quoted) and quote.verdict == "loading":
        coming, left = True, quote.seconds
    if coming:
        verdict = "loading"
        if state is not None and state.status == "waiting":
            # What has just begun is that for a moment: another load elsewhere would come of it.
            has_room = isinstance(quote, Quoted) and quote.verdict in ("loading", "fits")
            verdict = "loading" if has_room else "waiting"
        left = left or 0.0
        if verdict == "loading" and soonest < min(SOONER_SHARE * left, left - SOONER_SECONDS):
            verdict = "fits"
        return host.is_shaky(model), _RANKS[verdict], 0, left, 0, 0, 0
    free = sum([device.memory_free for device in host.devices if device.kind == "cuda"]).bit_length()
    begun = 0  # loads that we asked for and that its quotes may not know of yet
    for name, count in host.in_flight.items():
        if count > 0 and (other := host.models.get(name)) is not None and other.status in _AWAY:
            begun += 1
    failed = state is not None and state.status == "failed"  # tried again where nobody else has it
    if failed or isinstance(quote, CortexError):
        return host.is_shaky(model), _RANKS["refused"], begun, inf, 0, 0, -free
    if quote is None:
        return host.is_shaky(model), _RANKS["unknown"], begun, inf, 0, 0, -free
    seconds = inf if quote.seconds is None else quote.seconds + quote.loss
    verdict, pulled = quote.verdict, 0.0
    if _is_pulled(quote):
        verdict = "pulls"
        seconds, pulled = (seconds, quote.bytes_to_pull) if sized else (inf, 0)
    rank = _RANKS[verdict] - PARKED * quote.parked
    return host.is_shaky(model), rank, begun + quote.ahead, seconds, len(quote.evicts), pulled, -free


def _is_pulled(quote: Quoted | CortexError) -> bool:
    """Whether its files would have to come from a hub first."""
    return isinstance(quote, Quoted) and quote.verdict == "waits" and quote.bytes_to_pull is not None


def _reason(host: Host, model: str, quote: Quoted | CortexError | None) -> str:
    if is_coming(host, model) or (isinstance(quote, Quoted) and quote.verdict == "loading"):
        return "it is loading there"
    if quote is None:
        return "no quote came in time"
    if isinstance(quote, CortexError):
        return f"it is the last one, though it quoted {quote.code}"
    seconds = f" in {quote.seconds:.1f} s" if quote.seconds is not None else ""
    victims = f" ({', '.join(quote.evicts)})" if quote.evicts else ""
    if _is_pulled(quote):
        size = f"{quote.bytes_to_pull >> 20} MiB" if quote.bytes_to_pull else "some"
        return f"it quoted {size} to pull{seconds}"
    return f"it quoted {quote.verdict}{victims}{seconds}"
