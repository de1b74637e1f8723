"""The order in which requests get to a model: by class, then accounts in turn, then their sessions in turn.

A class is a priority: the smallest is served as long as anybody of it waits. Within it accounts take turns,
and within an account its sessions, each counted in tokens (`turns.py`); within a session who came first is
first.

Nobody starves: an account whose requests of one class had no turn for `ageing` seconds has one before all
classes, whoever has waited longest first. So of those who wait only some that had no turn for as long may
pass it, and each of them once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from neuron.admission.turns import Share, Turns, in_order

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Claim:
    """By what one that waits is placed.

    Attributes:
        priority: its class; smaller is sooner.
        cost: tokens that it comes to, at a guess.
    """

    priority: int = 0
    account: str = ""
    session: str = ""
    cost: int = 1


@dataclass(slots=True, eq=False)
class Entry(Generic[T]):
    """One that waits, or has been served and not settled yet.

    Attributes:
        cost: tokens that it still comes to.
        charged: tokens that its account and its session were charged for it.
    """

    item: T
    claim: Claim
    cost: int
    charged: int = 0


class Account(Generic[T]):
    """What waits of one account in one class."""

    def __init__(self) -> None:
        self.sessions: Turns[str, deque[Entry[T]]] = Turns(deque)
        self.waiting = 0
        self.since = 0.0  # when it had a turn last, or began to wait

    def __len__(self) -> int:
        return self.waiting

    def in_order(self) -> list[tuple[Entry[T], int]]:
        """Its entries, with what they cost."""
        shares = self.sessions.waiting()
        return in_order((share.credit, [(entry, entry.cost) for entry in share.queue]) for share in shares)


class FairLine(Generic[T]):
    """Those that wait. What was served stays known until it leaves, for until then its cost is a guess.

    Args:
        ageing: seconds without a turn after which an account has one before all classes.
        now: the clock, monotonic seconds.
    """

    def __init__(self, ageing: float, now: Callable[[], float] = time.monotonic) -> None:
        self._ageing = ageing
        self._now = now
        self._clock_started: float | None = None
        self._classes: dict[int, Turns[str, Account[T]]] = {}  # never empty ones
        self._waiting: dict[T, Entry[T]] = {}
        self._served: dict[T, Entry[T]] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, item: object) -> bool:
        return item in self._waiting

    def start_clock(self) -> None:
        """Turns can be had: waiting for one counts from now on."""
        self._clock_started = self._now()

    def stop_clock(self) -> None:
        """Nobody can have a turn."""
        self._clock_started = None

    def push(self, item: T, claim: Claim) -> None:
        """Let `item` wait, behind all of its session."""
        entry = Entry(item, claim, claim.cost)
        self._enter(entry).append(entry)

    def put_back(self, item: T, claim: Claim) -> None:
        """Let one that had its turn, and made nothing of it, wait before all of its session."""
        if (served := self._served.pop(item, None)) is not None:
            self._credit(served, served.charged)
        if (entry := self._waiting.get(item)) is not None:
            self._credit(entry, entry.charged)
            entry.cost, entry.charged = claim.cost, 0
        else:
            entry = Entry(item, claim, claim.cost)
            self._enter(entry).appendleft(entry)

    def next(self) -> T:
        """Whose turn it is; somebody must be waiting."""
        account = next(iter(self._overdue()), None) or self._classes[min(self._classes)].next()
        return account.queue.sessions.next().queue[0].item

    def serve(self, item: T, cost: int, *, all_of_it: bool = True) -> None:
        """It has a turn, which costs so many tokens; when that is all of it, it waits no more."""
        entry = self._waiting[item]
        entry.charged += cost
        entry.cost = max(entry.cost - cost, 0)
        self._account_of(entry).since = self._now()
        self._credit(entry, -cost)
        if all_of_it:
            self._take_out(entry)
            if self._waiting:
                self._served[item] = entry

    def refund(self, item: T, tokens: int) -> None:
        """It costs so many tokens less than its account was charged for it."""
        if (entry := self._served.get(item) or self._waiting.get(item)) is not None:
            tokens = min(tokens, entry.charged)
            entry.charged -= tokens
            self._credit(entry, tokens)

    def leave(self, item: T, tokens: int = 0) -> None:
        """It ended, with or without a turn, and came to so many tokens, whatever was thought before."""
        if (entry := self._served.pop(item, None) or self._waiting.get(item)) is not None:
            if entry.charged:
                self._credit(entry, entry.charged - tokens)
            if item in self._waiting:
                self._take_out(entry)

    def order(self) -> list[T]:
        """All that wait, as they will be served if nobody comes and nobody gets overdue."""
        overdue = self._overdue()
        first = [share.queue.in_order()[0][0] for share in overdue]
        rest: list[Entry[T]] = []
        for priority in sorted(self._classes):
            queues = []
            for share in self._classes[priority].waiting():
                entries, credit = share.queue.in_order(), share.credit
                if share in overdue:
                    credit -= entries.pop(0)[1]
                queues.append((credit, entries))
            rest += [entry for entry, _ in in_order(queues)]
        return [entry.item for entry in first + rest]

    def _overdue(self) -> list[Share[str, Account[T]]]:
        """Who has had no turn for too long, first who has waited longest."""
        if self._clock_started is None:
            return []
        latest = self._now() - self._ageing
        if self._clock_started > latest:
            return []
        late = [
            share
            for turns in self._classes.values()
            for share in turns.waiting()
            if share.queue.since <= latest
        ]
        return sorted(late, key=lambda share: share.queue.since)

    def _enter(self, entry: Entry[T]) -> deque[Entry[T]]:
        """Count one who waits; returns where it is to stand."""
        claim = entry.claim
        account = self._classes.setdefault(claim.priority, Turns(Account)).enter(claim.account).queue
        if not account.waiting:
            account.since = self._now()
        account.waiting += 1
        self._waiting[entry.item] = entry
        return account.sessions.enter(claim.session).queue

    def _take_out(self, entry: Entry[T]) -> None:
        del self._waiting[entry.item]
        account = self._account_of(entry)
        account.waiting -= 1
        account.sessions.get(entry.claim.session).queue.remove(entry)
        if not self._classes[entry.claim.priority]:  # all who come from now on begin anew, and equal
            del self._classes[entry.claim.priority]
        if not self._waiting:
            self._served.clear()

    def _account_of(self, entry: Entry[T]) -> Account[T]:
        return self._classes[entry.claim.priority].get(entry.claim.account).queue

    def _credit(self, entry: Entry[T], tokens: int) -> None:
        """Give so many tokens to its account and its session, where these are still known."""
        turns = self._classes.get(entry.claim.priority)
        if turns is not None and (account := turns.get(entry.claim.account)) is not None:
            account.give(tokens)
            if (session := account.queue.sessions.get(entry.claim.session)) is not None:
                session.give(tokens)
