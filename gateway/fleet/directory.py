"""Which hosts have a model: found by its name, whatever the number of hosts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from ipc.messages.state import ModelState


class Listed(Protocol):
    """What a directory must know of a host."""

    name: str
    healthy: bool  # it answers
    draining: bool
    models: Mapping[str, ModelState]  # as it said last
    in_flight: Mapping[str, int]  # our own requests, by model


_COMING = frozenset(("loading", "restarting", "waiting"))
_AWAY = frozenset(("unloaded", "unloading", "failed"))

H = TypeVar("H", bound=Listed)


class Copies(Generic[H]):
    """The hosts that have one model, each list by their names.

    Attributes:
        known: all, also those that are away for now.
        ready: those that take requests to it, and have it loaded.
        others: those that take requests to it, and would have to load it.
        coming: those of them that do so already.
    """

    __slots__ = ("coming", "known", "others", "ready")

    def __init__(self) -> None:
        self.known: list[H] = []
        self.ready: list[H] = []
        self.others: list[H] = []
        self.coming: list[H] = []


def is_coming(host: Listed, model: str) -> bool:
    """Whether a model is on its way on a host, as that says or as our own requests will have it."""
    state = host.models.get(model)
    if state is not None and state.status in _COMING:
        return True
    return (state is None or state.status in _AWAY) and host.in_flight.get(model, 0) > 0


class Directory(Generic[H]):
    """Kept up to date by `update`; what it says costs the same with one host and with a thousand."""

    def __init__(self) -> None:
        self._copies: dict[str, Copies[H]] = {}
        self._none: Copies[H] = Copies()

    def __contains__(self, model: str) -> bool:
        """Whether some host has, or had, that model."""
        return model in self._copies

    def __iter__(self) -> Iterator[str]:
        """Those models."""
        return iter(self._copies)

    def __len__(self) -> int:
        return len(self._copies)

    def of(self, model: str) -> Copies[H]:
        """Where that model is."""
        return self._copies.get(model, self._none)

    def update(self, host: H, models: Iterable[str]) -> None:
        """What the host has of these models, what we asked of it, or whether it takes requests, is not as it
        was. Our own requests matter only where the model is not loaded."""
        for model in models:
            state = host.models.get(model)
            takes = host.healthy and not host.draining and state is not None
            takes = takes and not (state.drained or state.retired)
            copies = self._copies.get(model)
            if copies is None:
                if state is None:
                    continue
                copies = self._copies[model] = Copies()
            is_ready = takes and state.status == "ready"
            _put(copies.known, host, state is not None)
            _put(copies.ready, host, is_ready)
            is_other = takes and not is_ready
            _put(copies.others, host, is_other)
            _put(copies.coming, host, is_other and is_coming(host, model))
            if not copies.known:
                del self._copies[model]


def _put(hosts: list[H], host: H, belongs: bool) -> None:
    at = bisect_left(hosts, host.name, key=_name)
    is_there = at < len(hosts) and hosts[at] is host
    if belongs and not is_there:
        hosts.insert(at, host)
    elif is_there and not belongs:
        del hosts[at]


def _name(host: Listed) -> str:
    return host.name
