"""What a wish for memory would come to, after those before it: a fit, and who leaves for it first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ipc.errors import CortexError
from ipc.messages.requests import Strategy
from neuron.memory.eviction import Holder, must_wait
from neuron.memory.fit import Fit, find_fit
from neuron.memory.need import Need


@dataclass(frozen=True, slots=True)
class Prospect:
    """What a wish would come to: a fit, whose victims have to leave first; or a refusal."""

    fit: Fit | None = None
    refusal: CortexError | None = None
    now: bool = False  # its memory is free
    waits: bool = False  # some victims have work to finish, or others wait for that memory
    ahead: int = 0  # wishes before it
    seconds: float = 0.0  # until its memory is free, at a guess
    loss: float = 0.0  # seconds that those who want the victims next will wait, at a guess

    @property
    def verdict(self) -> Literal["fits", "evicts", "waits", "refused"]:
        """In the words of a quote."""
        if self.fit is None:
            return "refused"
        shrinks = self.fit.shrinks and not self.fit.victims  # in a moment
        return "fits" if self.now or shrinks else "waits" if self.waits else "evicts"


@dataclass(slots=True)
class Outlook:
    """Memory as the wishes that were looked at leave it."""

    free: dict[str, int]  # bytes by device that nobody has now
    later: dict[str, int]  # what is left of them once all that leave have left and those wishes are granted
    holders: dict[str, Holder]  # that are not leaving for one of those wishes
    at_work: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # as `find_fit` takes it
    total: Mapping[str, int] | None = None  # the same

    def add(self, need: Need, strategy: Strategy, leaving: Sequence[str] = ()) -> Prospect:
        """The next wish: what it comes to, and what it leaves to those behind it."""
        try:
            holders = list(self.holders.values())
            fit = find_fit(need, self.later, holders, strategy, leaving, self.at_work, self.total)
        except CortexError as refusal:
            return Prospect(refusal=refusal)
        victims = [self.holders.pop(victim) for victim in fit.victims]
        shrinks = {model: self.holders[model] for model in fit.shrinks}
        there = all(size <= self.free[name] for name, size in fit.reservations.items())
        now = there and not victims and not shrinks
        for name, size in fit.reservations.items():
            self.free[name] -= size if now else 0
            self.later[name] -= size
        for holder in victims:
            for name, size in holder.reserved.items():
                self.later[name] += size
        for model, holder in shrinks.items():
            self.holders[model] = smaller = holder.shrunk(fit.shrinks[model])
            for name, size in holder.reserved.items():
                self.later[name] += size - smaller.reserved[name]
        waits = not now and (
            any(must_wait(holder, need.priority) for holder in victims) if victims else not shrinks
        )
        return Prospect(fit, now=now, waits=waits, loss=sum(holder.loss(strategy) for holder in victims))
