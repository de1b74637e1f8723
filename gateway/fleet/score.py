"""Which of the hosts that have a model loaded gets a request: where it begins soonest. A pure function.

What it costs is the same however many hosts there are: of many, a few are looked at, and those that hold the
beginning of its prompt.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

import msgspec

from gateway.fleet.prefixes import Prefixes
from gateway.fleet.prompts import NOTHING, Prompt
from ipc.messages.state import ModelState

LOOKED_AT = 12  # hosts; of more than that, so many in all, and of these
HOLDERS = 4  # at most are there because they hold some of the prompt
BYTES_PER_TOKEN = 4.0  # of text, until it was measured
# Of a host that has not measured its own: tokens a second, and seconds of a request.
PREFILL_RATE = 1000.0
REQUEST_SECONDS = 1.0
SEQUENCES = 8  # computed at once, where a neuron does not say
STAY_SHARE = 1 / 4  # of the time that a request takes: so much later a session begins rather than move,
STAY_SECONDS = 1.0  # and at most that
NEVER = 1e9  # seconds: of a host whose figures cannot be, and it comes last
CLOSE = 100  # hundredths of a second: what is closer to each other than one of them is equal


class Loaded(Protocol):
    """What must be known of a host."""

    name: str
    models: Mapping[str, ModelState]  # as it said last
    in_flight: Mapping[str, int]  # our own requests, by model

    def is_shaky(self, model: str) -> bool:
        """Whether it fails requests to that model, or is silent: others come first."""
        ...


H = TypeVar("H", bound=Loaded)

_name = attrgetter("name")


class Asked(msgspec.Struct, frozen=True):
    """What must be known of a request.

    Attributes:
        key: what requests have in common that go to the same one of equal hosts.
        bytes_per_token: of text, in that model's prompts.
    """

    model: str
    prompt: Prompt = NOTHING
    key: bytes = b""
    bytes_per_token: float = BYTES_PER_TOKEN

    @property
    def tokens(self) -> int:
        """Of the prompt, at a guess."""
        return int(self.prompt.size / self.bytes_per_token)


class Score(msgspec.Struct, Generic[H], frozen=True):
    """How one host would do.

    Attributes:
        seconds: until the first token, at a guess, with what its requests cost each other.
        waits: part of these, until it has a place for one more; 0 where no request was measured yet.
        each: seconds that one request makes the next one wait where all places are taken.
        cached: tokens of the prompt that it need not compute.
        open: requests that it has.
        stays: the session was there before.
    """

    host: H
    seconds: float
    waits: float
    each: float
    cached: int
    open: int
    stays: bool

    def reason(self, asked: Asked, among: int) -> str:
        """Why it was chosen, in words."""
        told = f"loaded, {self.seconds:.2f} s: {self.open} open"
        if tokens := asked.tokens:
            told += f", {min(self.cached, tokens)} of about {tokens} tokens cached"
        return f"{told}{', its session' if self.stays else ''}; best of {among}"


def best(hosts: Sequence[H], asked: Asked, prefixes: Prefixes[H]) -> Score[H]:
    """The one of these hosts, which all have the model loaded, where the request begins soonest.

    Args:
        hosts: by name, and one at least.
    """
    prompt = asked.prompt
    known = [held for place in prompt.places if (held := prefixes.held(place.digest)) is not None]
    session = (prefixes.held(prompt.session) or {}) if prompt.session else {}
    looked_at = hosts if len(hosts) <= LOOKED_AT else _looked_at(hosts, asked, [session, *known])
    at_home = bool(session) and any(host in session for host in looked_at)
    model, tokens = asked.model, asked.tokens
    least, equals = None, []
    for host in looked_at:
        score = _score(host, model, tokens, known, session)
        seconds = score.seconds
        if at_home and not score.stays:  # what it is worth not to have the session move
            usual = host.models[model].request_seconds or REQUEST_SECONDS
            seconds += min(STAY_SHARE * usual, STAY_SECONDS)
        cost = (host.is_shaky(model), round(CLOSE * seconds), not score.stays, -score.cached)
        if least is None or cost < least:
            least, equals = cost, [score]
        elif cost == least:
            equals.append(score)
    if len(equals) == 1:
        return equals[0]
    return min(equals, key=lambda score: order(score.host.name, model, asked.key))


def order(name: str, model: str, key: bytes = b"") -> bytes:
    """Where a host stands among equals, for one kind of requests: the same in every process, another for each
    kind (rendezvous hashing)."""
    so_far = _order_begun(name, model)
    if key:
        so_far = so_far.copy()
        so_far.update(key)
    return so_far.digest()


@lru_cache(4096)
def _order_begun(name: str, model: str) -> blake2b:
    return blake2b(f"{name}\0{model}\0".encode(), digest_size=8)


def some(hosts: Sequence[H], count: int, model: str, key: bytes = b"") -> list[H]:
    """At most that many of these hosts: the same for requests of one kind, and others for others."""
    if len(hosts) <= count:
        return list(hosts)
    seed = int.from_bytes(order("", model, key))
    start, step = seed % len(hosts), 1 + seed // len(hosts) % (len(hosts) // count)
    return [hosts[(start + step * number) % len(hosts)] for number in range(count)]


def load(host: Loaded, model: str) -> int:
    """Requests that it has for that model."""
    # The neuron's numbers are up to a tenth of a second old; our own tell a burst apart at once.
    state = host.models[model]
    return state.running + state.waiting + host.in_flight.get(model, 0)


def _looked_at(hosts: Sequence[H], asked: Asked, held: Sequence[Mapping[H, int]]) -> list[H]:
    """Of many hosts a few, and those that hold most of the prompt."""
    chosen = dict.fromkeys(some(hosts, LOOKED_AT - HOLDERS, asked.model, asked.key))
    for holders in held:
        if len(holders) > HOLDERS:  # so many hold it that some are among the few
            continue
        for host in holders:
            if len(chosen) < LOOKED_AT and host not in chosen and _is_in(hosts, host):
                chosen[host] = None
    return list(chosen)


def _is_in(hosts: Sequence[H], host: H) -> bool:
    at = bisect_left(hosts, host.name, key=_name)
    return at < len(hosts) and hosts[at] is host


def _score(
    host: H, model: str, tokens: int, known: Sequence[Mapping[H, int]], session: Mapping[H, int]
) -> Score[H]:
    state = host.models[model]
    cached = 0
    for held in known:
        if host in held:
            cached = held[host]
            break
    already, places = load(host, model), state.max_sequences or SEQUENCES
    each = (state.request_seconds or REQUEST_SECONDS) / places
    seconds = already * each
    if tokens > cached:
        seconds += (tokens - cached) / (state.prefill_rate or PREFILL_RATE)
    waits = max(already + 1 - places, 0) * state.request_seconds / places
    if not (0 <= seconds < NEVER and 0 <= waits < NEVER):
        seconds, waits = NEVER, 0.0
    return Score(host, seconds, waits, each, cached, already, host in session)
