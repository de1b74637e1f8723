"""What a model needs of the devices, rank by rank, and in which ways its ranks may share it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from ipc.messages.state import Device
from neuron.memory.cache_plan import CachePlan
from workers.checkpoints.shares import ALONE, Split

MOST_WAYS = 6  # that are faster, and tried before the usual one


@dataclass(frozen=True, slots=True, kw_only=True)
class RankNeed:
    """Bytes of one rank. The process itself and what its largest step takes come on top of weights and cache,
    for each kind of device."""

    weights: int
    caches: CachePlan = field(default_factory=CachePlan)
    cpu_overhead: int = 0
    cuda_overhead: int = 0
    beside: int = 0  # that its pool leaves free, for what may come: not booked

    def fixed(self, device: str) -> int:
        """On `device`, without pages and states."""
        return self.weights + (self.cpu_overhead if device == "cpu" else self.cuda_overhead)


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a model needs."""

    model: str
    ranks: tuple[RankNeed, ...]
    context_length: int
    max_sequences: int
    kv_memory: int | None = None  # bytes of the pool on each rank at most, where the user chose it
    devices: tuple[str, ...] | None = None  # where the user wants it
    priority: int = 100
    base: str = ""  # who does not leave for it, for without that one it is of no use
    host_state_memory: int = 0  # bytes of the host, for states of each rank that leave its device, at most
    split: Split = ALONE  # how these ranks share it,
    others: tuple[Split, ...] = ()  # and how they might,
    shared: Callable[[Split], Need] | None = field(default=None, compare=False)  # and what that would need
    # Bytes a second of the memory of each device.
    rates: Mapping[str, int] = field(default_factory=dict, compare=False)
    spare: int = 0  # bytes on each rank over what is planned

    def fixed(self, devices: Sequence[str]) -> list[int]:
        """Bytes of each rank on its device, without pages and states."""
        return [rank.fixed(name) + self.spare for rank, name in zip(self.ranks, devices, strict=True)]

    @property
    def caches(self) -> CachePlan:
        """Of the first rank. All have as many pages and states as this one, in bytes of their own."""
        return self.ranks[0].caches

    @property
    def most_pages(self) -> int:
        """Of each rank, that all its sequences together can fill."""
        return self.max_sequences * self.caches.pages_for(self.context_length)

    def chosen_pool(self, rank: RankNeed) -> int | None:
        """Bytes of the pool of a rank, where the user chose them: no more than it can fill."""
        if self.kv_memory is None:
            return None
        return min(self.kv_memory, self.most_pages * rank.caches.page_bytes)

    def ways(self, devices: Sequence[str]) -> Iterator[Need]:
        """The same for ranks on `devices`, shared in ways that are faster than this one, the fastest first;
        then this one. A step is as slow as the slowest of its ranks, which reads all of its weights."""
        faster = (split for split, seconds in self._others_on(devices) if seconds < 0)
        yield from map(self._like, islice(faster, MOST_WAYS))
        yield self

    def slower_ways(self, devices: Sequence[str]) -> Iterator[Need]:
        """The same in all other ways."""
        yield from (self._like(split) for split, seconds in self._others_on(devices) if seconds >= 0)

    def _like(self, split: Split) -> Need:
        return replace(self.shared(split), rates=self.rates, spare=self.spare)

    def _others_on(self, devices: Sequence[str]) -> list[tuple[Split, float]]:
        """How else ranks on them may share it, the fastest first, and how much longer a step takes then."""
        if not self.others or len({*devices}) < len(devices):
            return []
        usual = self._seconds(self.split, devices)
        found = [(split, self._seconds(split, devices) - usual) for split in self.others]
        return sorted(found, key=lambda other: other[1])

    def _seconds(self, split: Split, devices: Sequence[str]) -> float:
        """That a step takes, as far as devices differ."""
        rates = [self.rates.get(name, 0) for name in devices]
        if not all(rates):
            rates = [1] * len(devices)
        return max(count / rate for count, rate in zip(split.counts, rates, strict=True)) / split.parts


def rates_of(devices: Iterable[Device]) -> dict[str, int]:
    """`Need.rates`."""
    return {device.id: device.memory_rate for device in devices if device.memory_rate}
