"""Who is next: priorities first, then accounts in turn, then first come first served; and nobody starves.

Each account has a counter of tokens served; among equal priorities the account with the smallest is next. One
that returns after a pause starts no lower than those that stayed, so idling saves up no claim. (Sheng et al.,
"Fairness in Serving Large Language Models", 2024, call this a virtual token counter.)

Neither order may starve anyone: when `PASSING` others have been admitted since a sequence became the first of
its account and priority, it goes before all that did not wait so long, oldest first. From then on only older
sequences come before it, for tokens and for pages alike, and there are finitely many of those.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterator

from ipc.worker_messages import Submit
from workers.scheduling.sequence import Account, Sequence

PASSING = 128  # sequences that may pass one, where priorities and accounts alone would let any number pass


class FairQueue:
    """The sequences that wait, and the order of all that are open.

    A sequence is `enter`ed once and `leave`s once, when it ends. In between it is taken out by `admit` and
    may come back by `put_back`. Sequences of one account and priority wait in a lane, in order of arrival.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._lanes: dict[tuple[int, str], deque[Sequence]] = {}  # never empty ones
        self._arrivals = 0
        self._departures = 0  # sequences that were admitted for the first time

    def enter(self, request: Submit, token_ids: array[int], max_len: int, prompt_len: int) -> Sequence:
        """A new sequence waits from now on, at the end of its lane."""
        account = self._accounts.get(request.account)
        if account is None:
            account = self._accounts[request.account] = Account()
        if not account.open:
            account.served = max(account.served, min(self._open_counters(), default=0))
        account.open += 1
        sequence = Sequence(request, token_ids, prompt_len, max_len, account, self._arrivals)
        self._arrivals += 1
        self._insert(sequence)
        return sequence

    def put_back(self, sequence: Sequence) -> None:
        """An admitted sequence waits again, where it stood by its arrival."""
        self._insert(sequence)

    def admit(self, sequence: Sequence) -> Sequence | None:
        """Take the first of a lane; returns who is first there now."""
        self._departures += not sequence.started
        return self._take(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take out one that waits anywhere."""
        self._take(sequence)

    def leave(self, sequence: Sequence) -> None:
        """A sequence has ended, after `admit` or `remove`."""
        sequence.account.open -= 1
        if not sequence.account.open:
            # an idle account's counter matters while it is above the least of the others; with no others all
            # start anew, and equal
            least = min(self._open_counters(), default=math.inf)
            self._accounts = {
                name: account
                for name, account in self._accounts.items()
                if account.open or account.served > least
            }

    def heads(self) -> Iterator[Sequence]:
        """The first of each lane."""
        return (lane[0] for lane in self._lanes.values())

    def order(self, sequence: Sequence) -> tuple[int, int, int, int]:
        """The smallest is next to be served: of the heads, and of those that were admitted."""
        if self._departures - sequence.first_since > PASSING:
            return (0, 0, 0, sequence.arrival)
        return (1, sequence.request.priority, sequence.account.served, sequence.arrival)

    def rank(self, sequence: Sequence) -> tuple[int, int, int]:
        """Of those that were admitted, the greatest gives up its pages first."""
        if self._departures - sequence.first_since > PASSING:
            return (0, 0, sequence.arrival)
        return (1, sequence.request.priority, sequence.arrival)

    def _open_counters(self) -> list[int]:
        return [account.served for account in self._accounts.values() if account.open]

    def _insert(self, sequence: Sequence) -> None:
        key = (sequence.request.priority, sequence.request.account)
        if (lane := self._lanes.get(key)) is None:
            lane = self._lanes[key] = deque()
        place = len(lane)
        while place and lane[place - 1].arrival > sequence.arrival:
            place -= 1
        lane.insert(place, sequence)
        self._note_first(lane)

    def _take(self, sequence: Sequence) -> Sequence | None:
        key = (sequence.request.priority, sequence.request.account)
        lane = self._lanes[key]
        lane.remove(sequence)
        if not lane:
            del self._lanes[key]
            return None
        self._note_first(lane)
        return lane[0]

    def _note_first(self, lane: deque[Sequence]) -> None:
        if lane[0].first_since is None:
            lane[0].first_since = self._departures
