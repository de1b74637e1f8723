"""Weights of models that left, in the host's memory: within a budget, and as long as nobody needs it.

The memory has no name and belongs to this process, which lends its descriptors to the workers of a load: they
fill it, or read what is there. It is in the ledger, under a name of its own.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from ipc import parked
from ipc.sizes import gib
from neuron.memory.ledger import Ledger

log = logging.getLogger("neuron.memory.parking")

HOST = "cpu"  # the device whose memory it is
SPARE_SHARE = 1 / 20  # of the host's memory, that stays free beside what is parked
BUDGET_SHARE = 1 / 2  # of what is free when the neuron starts, where nobody says how much may be parked


def automatic_budget(devices: Collection[str], free: int) -> int:
    """Bytes that may be parked where nobody says: none where models are in the host's memory themselves.

    Args:
        devices: those that models are loaded on.
        free: bytes of the host's memory, now.
    """
    return int(BUDGET_SHARE * free) if set(devices) - {HOST} else 0


@dataclass(slots=True, eq=False)
class Loan:
    """Memory for the weights of one load.

    Attributes:
        fds: of each rank.
        whole: whether the weights are there, to be read; else they are to be filled in.
    """

    model: str
    identity: object  # of what the weights are made of
    fds: tuple[int, ...]
    nbytes: int  # as booked
    whole: bool = False
    lent: bool = True  # to a load that goes on


class Parking:
    """What is parked, by model.

    Args:
        budget: bytes that may be parked; 0: nothing is.
        ledger: where it is booked, if the host's memory is one of its devices.
        host: gives the host's memory now, total and free, in bytes.
        changed: told of which model something is parked now, or nothing any more.
        worth: seconds that the return of a model from there saves, for each who may want it soon; the same of
            all where only the last use counts.
        used: when a model was used last, on any clock.

    Attributes:
        budget: as given.
        wake_share: of the seconds of a load from files, that a return from here takes: as the last one did; 1
            until there was one.
    """

    def __init__(
        self,
        budget: int,
        ledger: Ledger,
        host: Callable[[], tuple[int, int]],
        changed: Callable[[str], None] = lambda model: None,
        worth: Callable[[str], float] = lambda model: 0.0,
        used: Callable[[str], float] = lambda model: 0.0,
    ) -> None:
        self.budget = budget
        self.wake_share = 1.0
        self._ledger = ledger
        self._host = host
        self._changed = changed
        self._worth = worth
        self._used = used
        self._books = HOST in ledger.devices
        self._loans: dict[str, Loan] = {}

    # --- for loads --------------------------------------------------------------------------------------

    def lend(self, model: str, identity: object, sizes: Sequence[int], *, new: bool = True) -> Loan | None:
        """Memory for a load of `model`: with its weights in it, or empty, or none at all.

        Args:
            identity: equal for loads that come to the same weights.
            sizes: bytes of the weights of each rank, as planned.
            new: whether it may be empty.
        """
        loan = self._loans.get(model)
        if loan is not None and loan.whole and loan.identity == identity:
            loan.lent = True
            return loan
        self.drop(model)
        size = sum(sizes)
        if not new or not self._has_room(model, size):
            return None
        fds: list[int] = []
        try:
            fds.extend(parked.create("parked weights") for _ in sizes)
        except OSError as error:
            log.warning("nothing is parked model=%s reason=%s", model, error)
            for fd in fds:
                os.close(fd)
            return None
        loan = self._loans[model] = Loan(model, identity, tuple(fds), size)
        if self._books:
            self._ledger.reserve(_name(model), {HOST: size})
        return loan

    def settle(self, loan: Loan, *, loaded: bool, woken: bool = False, share: float | None = None) -> None:
        """A load has ended that had this memory.

        Args:
            loaded: whether all ranks are ready.
            woken: whether its weights came from there, if they were there; what is of no use leaves.
            share: of the seconds of its load from files that this one took, where its weights came from there
                and that is known.
        """
        if share is not None:
            self.wake_share = min(1.0, share)
        if self._loans.get(loan.model) is not loan:
            return
        loan.lent = False
        if loan.whole:
            if not woken:
                self.drop(loan.model)
            return
        if not loaded or any(parked.digest_of(fd) is None for fd in loan.fds):
            self.drop(loan.model)
            return
        try:
            loan.nbytes, loan.whole = sum(map(parked.seal, loan.fds)), True
        except OSError as error:  # a worker can still write to it
            log.warning("weights are not kept in memory model=%s reason=%s", loan.model, error)
            self.drop(loan.model)
            return
        if self._books:
            self._ledger.correct(_name(loan.model), HOST, loan.nbytes)
        log.info("weights are kept in memory model=%s bytes=%d held=%d", loan.model, loan.nbytes, self.held)
        self._changed(loan.model)
        self._shrink()

    def drop(self, model: str) -> None:
        """Park nothing of `model`, if anything is."""
        if (loan := self._loans.pop(model, None)) is None:
            return
        for fd in loan.fds:
            os.close(fd)
        if self._books:
            self._ledger.release(_name(model))
        if loan.whole:
            log.info("weights left memory model=%s bytes=%d", model, loan.nbytes)
            self._changed(model)

    # --- for others -------------------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """Bytes, of all models."""
        return sum(loan.nbytes for loan in self._loans.values())

    def bytes_of(self, model: str) -> int:
        """Bytes that a load of `model` can come back from; 0: it cannot."""
        loan = self._loans.get(model)
        return loan.nbytes if loan is not None and loan.whole else 0

    def wakes(self, model: str, identity: object) -> bool:
        """Whether a load of `model` that comes to the weights of that identity would come back from there."""
        return self.bytes_of(model) > 0 and self._loans[model].identity == identity

    def booked(self, device: str) -> int:
        """Bytes on `device` that a model may have, because what is parked makes way."""
        if device != HOST or not self._books:
            return 0
        return sum(loan.nbytes for loan in self._loans.values() if not loan.lent)

    def coming(self, device: str) -> int:
        """The same of what makes way once the loads have ended that fill or read it."""
        return self.held - self.booked(device) if device == HOST and self._books else 0

    def make_way(self, model: str, amounts: Mapping[str, int]) -> None:
        """See that `amounts` (bytes by device) can be booked for `model`, as far as what is parked is in the
        way: its own weights leave last."""
        needed = amounts.get(HOST, 0)
        for loan in self._idle(last=model):
            if not self._books or needed <= self._ledger.free(HOST):
                return
            self.drop(loan.model)

    def relieve(self) -> None:
        """Give back as much as the host is short of, for others have taken it."""
        if not self._loans:
            return
        total, free = self._host()
        for loan in self._idle():
            if free >= SPARE_SHARE * total:
                return
            log.warning("the host runs short of memory free=%s", gib(free))
            free += loan.nbytes
            self.drop(loan.model)

    def close(self) -> None:
        """Keep nothing."""
        for model in list(self._loans):
            self.drop(model)

    def _has_room(self, model: str, size: int) -> bool:
        """Whether `size` bytes more can be parked, once others have made way that are worth less."""
        if size > self.budget:
            if self.budget:
                log.info("too large to be parked model=%s bytes=%d budget=%d", model, size, self.budget)
            return False
        leave, held = [], self.held
        for loan in self._idle():
            if held + size <= self.budget:
                break
            leave.append(loan)
            held -= loan.nbytes
        if held + size > self.budget or sum(self._worth(loan.model) for loan in leave) > self._worth(model):
            return False
        for loan in leave:
            self.drop(loan.model)
        total, free = self._host()
        return size <= free - SPARE_SHARE * total and not (self._books and size > self._ledger.free(HOST))

    def _shrink(self) -> None:
        """Have others leave, until what is parked is within the budget."""
        for loan in self._idle():
            if self.held <= self.budget:
                return
            self.drop(loan.model)

    def _idle(self, last: str = "") -> list[Loan]:
        """What can leave, in the order in which it does: what is worth least for each byte first."""
        idle = [loan for loan in self._loans.values() if not loan.lent]
        return sorted(
            idle,
            key=lambda loan: (
                loan.model == last,
                self._worth(loan.model) / loan.nbytes,
                self._used(loan.model),
            ),
        )


def _name(model: str) -> str:
    """Under which it is booked; no model has such an id."""
    return f"parked {model}"
